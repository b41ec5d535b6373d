from pathlib import Path
from textwrap import dedent
from typing import Annotated, Any

import pytest
from annotated_types import Ge, Gt

from trainer.config import sources
from trainer.config.command import check_command
from trainer.config.signatures import attribute, read
from trainer.constraints import BelowOne, Count, Duration, Note
from trainer.constraints.rules import Rule
from trainer.errors import ConfigError


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose modules would fail on import, in the place of our own."""
    root = tmp_path / "pkg"
    monkeypatch.setattr(sources, "PACKAGE", root)
    monkeypatch.setattr(sources, "OWN", "pkg.")
    (root / "loss").mkdir(parents=True)
    (root / "loss" / "focal.py").write_text(
        dedent(
            """
            from dataclasses import dataclass
            from os import system
            from typing import ClassVar
            from pkg.schedule import Warm, cosine as wave
            raise RuntimeError("imported")

            class Focal(Module):
                def __init__(self, gamma: float, alpha: "list[float] | None" = None, *, eps=1e-8, **more: int): ...
                @classmethod
                def of(cls, name: str): ...

            class Child(Focal): ...
            class Foreign(Module): ...
            class Empty: ...

            @dataclass(frozen=True)
            class Data:
                size: int
                kind: ClassVar[str] = "x"
                name: str | None = None

            @dataclass
            class Further(Data, Warm):
                size: int = 1
                more: float

            @dataclass
            class Strange(Data, Module): ...

            @dataclass
            class Mixed(Focal): ...
            """
        )
    )
    (root / "schedule.py").write_text(
        "from dataclasses import dataclass as record\n"
        "def cosine(step: int, /, *, warmup_steps: int, tail_steps: int | None = None): ...\n"
        "@record(frozen=True)\nclass Warm:\n    size: str\n    start: int\n"
    )
    return root


def test_class_has_the_parameters_of_its_constructor(package: Path) -> None:
    signature = read("pkg.loss.focal.Focal")
    assert signature is not None
    assert signature.annotations == {"gamma": float, "alpha": list[float] | None, "eps": Any}
    assert signature.required == {"gamma"}
    assert signature.open
    assert signature.annotation("anything") is Any
    assert read("pkg.loss.focal.Child") == signature


def test_dataclass_has_inherited_fields(package: Path) -> None:
    signature = read("pkg.loss.focal.Further")
    assert signature is not None
    assert dict(signature.annotations) == {"size": int, "start": int, "name": str | None, "more": float}
    assert signature.required == {"start", "more"}
    assert read("pkg.loss.focal.Strange") is None
    assert read("pkg.loss.focal.Mixed") is None


def test_method_dataclass_and_class_without_constructor(package: Path) -> None:
    method = read("pkg.loss.focal.Focal.of")
    assert method is not None
    assert method.annotations == {"name": str}
    data = read("pkg.loss.focal.Data")
    assert data is not None
    assert (data.annotations, data.required) == ({"size": int, "name": str | None}, {"size"})
    empty = read("pkg.loss.focal.Empty")
    assert empty is not None
    assert empty.annotation("x") is None


def test_targets_of_other_libraries_are_not_read(package: Path) -> None:
    assert read("pkg.loss.focal.Foreign") is None
    assert read("pkg.loss.focal.system") is None


def test_a_key_of_a_steps_parameter_is_a_duration(package: Path) -> None:
    signature = read("pkg.loss.focal.wave")
    assert signature == read("pkg.schedule.cosine")
    assert signature is not None
    assert signature.annotation("warmup") == Duration
    assert signature.annotation("tail") == Duration | None
    assert signature.annotation("warmup_steps") is int
    assert signature.annotation("warm") is None
    assert signature.annotation("step") is None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("pkg.los.focal.Focal", "no module los in pkg. Did you mean loss"),
        ("pkg.loss.fokal.Focal", "no module fokal in pkg.loss. Did you mean focal"),
        ("pkg.loss.focal.Focl", "no Focl in pkg.loss.focal. Did you mean Focal"),
        ("pkg.loss.focal.Focal.off", "no off in pkg.loss.focal.Focal. Did you mean of"),
        ("pkg.loss.focal", "names a module"),
        ("pkg.loss", "names a package"),
    ],
)
def test_missing_names_are_reported(package: Path, target: str, message: str) -> None:
    with pytest.raises(LookupError, match=message.replace(".", r"\.")):
        read(target)


def test_a_class_attribute_is_read_also_from_a_base(package: Path) -> None:
    (package / "first.py").write_text('class First:\n    kind: str = "one"\n    made = list()\n    many = ("a", "b")\n')
    (package / "second.py").write_text(
        "from pkg.first import First\n\nclass Second(First):\n    many = ('c',)\n\n\nclass Third(Second):\n    x = 1\n"
    )
    assert attribute("pkg.first.First", "kind") == "one"
    assert attribute("pkg.first.First", "made") is None
    assert attribute("pkg.second.Second", "many") == ("c",)
    assert attribute("pkg.second.Third", "many") == ("c",)
    assert attribute("pkg.second.Third", "kind") == "one"
    assert attribute("pkg.second.Fourth", "kind") is None
    assert attribute("pkg.nowhere.Fourth", "kind") is None
    assert attribute("other.Fourth", "kind") is None


USER = """
from typing import Annotated
from annotated_types import Ge, Gt
from trainer.constraints import BelowOne as Momentum, Rule, validated
from .shared import Weight, ORDERED
raise SystemExit("imported")

Scale = Annotated[float, Gt(1)]

class Mine:
    targets = ("class",)

    @validated(Rule("len(weights) > 1", key="weights", problem="must be several"), *ORDERED)
    def __init__(self, momentum: Momentum, scale: Scale | None, weights: list[Weight], every_steps: "Weight"): ...
"""


def test_aliases_and_rules_of_a_users_own_part_are_read(elsewhere: Path) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "__init__.py").write_text("from mine.parts import Mine")
    (elsewhere / "mine" / "parts.py").write_text(USER)
    (elsewhere / "mine" / "shared.py").write_text(
        "from trainer.constraints import Count, Rule\nWeight = Count\n"
        "ORDERED = [Rule('momentum < scale', key='momentum', problem='must be below {scale}')]\n"
    )
    signature = read("mine.parts.Mine")
    assert signature is not None
    assert signature == read("mine.Mine")
    assert dict(signature.annotations) == {
        "momentum": BelowOne,
        "scale": Annotated[float, Gt(1)] | None,
        "weights": list[Count],
        "every_steps": Count,
    }
    assert signature.annotation("every") == Annotated[Duration, Gt(0)]
    assert signature.rules == (
        Rule("len(weights) > 1", "weights", "must be several"),
        Rule("momentum < scale", "momentum", "must be below {scale}"),
    )
    assert attribute("mine.Mine", "targets") == ("class",)


SOURCE = """
import torch.nn
from losses import Huber as Robust

if torch:
    Plain = torch.nn.MSELoss
else:
    class Other: ...

class Squared:
    def num_targets(self, target): ...
"""


def test_names_that_a_users_module_binds_exist(elsewhere: Path) -> None:
    (elsewhere / "my" / "inner").mkdir(parents=True)
    for folder in (elsewhere / "my", elsewhere / "my" / "inner"):
        (folder / "__init__.py").touch()
    (elsewhere / "my" / "inner" / "parts.py").write_text(SOURCE)
    for name in ("Squared", "Squared.num_targets", "Robust", "Plain", "Other", "torch"):
        read(f"my.inner.parts.{name}")
    with pytest.raises(LookupError, match=r"there is no Sqared in my\.inner\.parts\. Did you mean Squared"):
        read("my.inner.parts.Sqared")


@pytest.mark.parametrize(
    "source", ["from losses import *", "def __getattr__(name): ...", "globals()['X'] = 1", "x = ("]
)
def test_dynamic_names_are_not_reported_as_missing(source: str, elsewhere: Path) -> None:
    (elsewhere / "my_parts.py").write_text(source)
    assert read("my_parts.X") is None
    assert read("torch.nn.Nothing") is None


NAMESAKES = """
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Literal
import trainer.constraints as c
from trainer.constraints import Rule as Relation, validated as checked
from .own import Seed, Note, Rule, validated

class Mode(Enum):
    A = "a"

class Probability: ...

class Loss:
    @validated(Relation("size > 1", "size", "is no rule of ours"))
    @checked(Rule("size > 1", "size", "is no rule of ours"), Relation("size > 0", "size", "must be above 0"))
    def __init__(
        self, mode: Annotated[Mode, Note(Mode.A)], share: Probability, seed: "Seed | None",
        kind: Literal[Mode.A] = Mode.A, size: Annotated[c.Count, c.Note("why")] = 1,
    ): ...
"""


def test_names_of_a_users_own_are_not_taken_for_constraints(elsewhere: Path) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "__init__.py").touch()
    (elsewhere / "mine" / "own.py").write_text(
        "class Seed: ...\nclass Note: ...\nclass Rule: ...\ndef validated(x): ...\n"
    )
    (elsewhere / "mine" / "loss.py").write_text(NAMESAKES)
    signature = read("mine.loss.Loss")
    assert signature is not None
    size = Annotated[int, Ge(1), Note("why")]
    assert signature.annotations == {"mode": Any, "share": Any, "seed": Any | None, "kind": Any, "size": size}
    assert signature.rules == (Rule("size > 0", "size", "must be above 0"),)


def test_definitions_that_refer_to_themselves_are_read(elsewhere: Path) -> None:
    (elsewhere / "first.py").write_text("from second import A\nB = list[C]\nC = B | None\nRULES = [*RULES]\n")
    (elsewhere / "second.py").write_text(
        "from trainer.constraints import validated\nfrom first import A, B, RULES\n"
        "@validated(*RULES)\ndef make(a: A, b: B): ...\n"
    )
    signature = read("second.make")
    assert signature is not None
    assert signature.annotations == {"a": Any, "b": list[Any | None]}
    assert signature.rules == ()


def test_rules_that_cannot_be_checked_are_reported(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(elsewhere)
    (elsewhere / "mine.py").write_text(
        "from trainer.constraints import Rule, validated\n"
        "@validated(Rule('hihg > 0', 'high', 'is wrong'), Rule('high.real', 'high', 'is wrong'))\n"
        "def make(step, /, *, high: int): ...\n"
    )
    with pytest.raises(ConfigError) as caught:
        check_command("train", ["loss._target_=mine.make", "+loss.high=1"])
    first, second = caught.value.messages
    assert first.startswith("loss._target_: the rule 'hihg > 0' names hihg, which is not a parameter, got 'mine.make'.")
    assert first.endswith("Did you mean high?")
    assert second.startswith("loss._target_: the rule 'high.real' cannot be read")
