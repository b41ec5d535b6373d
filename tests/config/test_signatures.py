from pathlib import Path
from textwrap import dedent

import pytest

from trainer.annotations import aliases
from trainer.config import signatures
from trainer.config.signatures import attribute, defines, read
from trainer.rules import Rule


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose modules would fail on import, in the place of our own."""
    root = tmp_path / "pkg"
    monkeypatch.setattr(signatures, "PACKAGE", root)
    monkeypatch.setattr(signatures, "OWN", "pkg.")
    (root / "loss").mkdir(parents=True)
    (root / "loss" / "focal.py").write_text(
        dedent(
            """
            from dataclasses import dataclass
            from os import system
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
        "def cosine(step: int, /, *, warmup_steps: int, tail_steps: int | None = None): ...\n"
        "@dataclass\nclass Warm:\n    size: str\n    start: int\n"
    )
    return root


def test_a_class_is_its_constructor(package: Path) -> None:
    found = read("pkg.loss.focal.Focal")
    assert found is not None
    assert found.annotations == {"gamma": "float", "alpha": "list[float] | None", "eps": "Any"}
    assert found.required == {"gamma"}
    assert found.open
    assert found.annotation("anything") == "Any"
    assert read("pkg.loss.focal.Child") == found


def test_a_dataclass_has_the_fields_of_those_it_inherits_from(package: Path) -> None:
    found = read("pkg.loss.focal.Further")
    assert found is not None
    assert dict(found.annotations) == {"size": "int", "start": "int", "name": "str | None", "more": "float"}
    assert found.required == {"start", "more"}
    assert read("pkg.loss.focal.Strange") is None
    assert read("pkg.loss.focal.Mixed") is None


def test_a_method_a_dataclass_and_nothing(package: Path) -> None:
    method = read("pkg.loss.focal.Focal.of")
    assert method is not None
    assert method.annotations == {"name": "str"}
    data = read("pkg.loss.focal.Data")
    assert data is not None
    assert (data.annotations, data.required) == ({"size": "int", "name": "str | None"}, {"size"})
    empty = read("pkg.loss.focal.Empty")
    assert empty is not None
    assert empty.annotation("x") is None


def test_what_another_library_defines_cannot_be_judged(package: Path) -> None:
    assert read("pkg.loss.focal.Foreign") is None
    assert read("pkg.loss.focal.system") is None


def test_a_key_of_a_steps_parameter_is_a_duration(package: Path) -> None:
    found = read("pkg.loss.focal.wave")
    assert found == read("pkg.schedule.cosine")
    assert found is not None
    assert found.annotation("warmup") == "Duration"
    assert found.annotation("tail") == "Duration | None"
    assert found.annotation("warmup_steps") == "int"
    assert found.annotation("warm") is None
    assert found.annotation("step") is None


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
def test_a_name_that_there_is_not(package: Path, target: str, message: str) -> None:
    with pytest.raises(LookupError, match=message.replace(".", r"\.")):
        read(target)


def test_defined_here_or_only_imported(package: Path) -> None:
    assert defines("pkg.loss.focal.Focal")
    assert defines("pkg.loss.focal.Focal.of")
    for target in ("pkg.loss.focal.system", "pkg.loss.focal.wave", "pkg.loss.focal", "pkg.nothing.X", "other.X"):
        assert not defines(target)


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
from annotated_types import Gt
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
    found = read("mine.parts.Mine")
    assert found is not None
    assert found == read("mine.Mine")
    assert dict(found.annotations) == {
        "momentum": aliases()["BelowOne"],
        "scale": "Annotated[float, Gt(1)] | None",
        "weights": f"list[{aliases()['Count']}]",
        "every_steps": aliases()["Count"],
    }
    assert found.annotation("every") == "Annotated[Duration, Gt(0)]"
    assert found.rules == (
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
def test_names_that_a_source_may_bind_are_left_to_the_run(source: str, elsewhere: Path) -> None:
    (elsewhere / "my_parts.py").write_text(source)
    assert read("my_parts.X") is None
    assert read("torch.nn.Nothing") is None
