from pathlib import Path
from textwrap import dedent

import pytest

from trainer.config.signature import attribute, defines, read


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose modules would fail on import."""
    root = tmp_path / "pkg"
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
    found = read("pkg.loss.focal.Focal", package)
    assert found is not None
    assert found.annotations == {"gamma": "float", "alpha": "'list[float] | None'", "eps": "Any"}
    assert found.required == {"gamma"}
    assert found.open
    assert found.annotation("anything") == "Any"
    assert read("pkg.loss.focal.Child", package) == found


def test_a_dataclass_has_the_fields_of_those_it_inherits_from(package: Path) -> None:
    found = read("pkg.loss.focal.Further", package)
    assert found is not None
    assert dict(found.annotations) == {"size": "int", "start": "int", "name": "str | None", "more": "float"}
    assert found.required == {"start", "more"}
    assert read("pkg.loss.focal.Strange", package) is None
    assert read("pkg.loss.focal.Mixed", package) is None


def test_a_method_a_dataclass_and_nothing(package: Path) -> None:
    method = read("pkg.loss.focal.Focal.of", package)
    assert method is not None
    assert method.annotations == {"name": "str"}
    data = read("pkg.loss.focal.Data", package)
    assert data is not None
    assert (data.annotations, data.required) == ({"size": "int", "name": "str | None"}, {"size"})
    empty = read("pkg.loss.focal.Empty", package)
    assert empty is not None
    assert empty.annotation("x") is None


def test_what_another_library_defines_cannot_be_judged(package: Path) -> None:
    assert read("pkg.loss.focal.Foreign", package) is None
    assert read("pkg.loss.focal.system", package) is None


def test_a_key_of_a_steps_parameter_is_a_duration(package: Path) -> None:
    found = read("pkg.loss.focal.wave", package)
    assert found == read("pkg.schedule.cosine", package)
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
        read(target, package)


def test_defined_here_or_only_imported(package: Path) -> None:
    assert defines("pkg.loss.focal.Focal", package)
    assert defines("pkg.loss.focal.Focal.of", package)
    for target in ("pkg.loss.focal.system", "pkg.loss.focal.wave", "pkg.loss.focal", "pkg.nothing.X", "other.X"):
        assert not defines(target, package)


def test_a_class_attribute_is_read_also_from_a_base(tmp_path: Path) -> None:
    package = tmp_path / "trainer"
    package.mkdir()
    (package / "first.py").write_text('class First:\n    kind: str = "one"\n    made = list()\n    many = ("a", "b")\n')
    (package / "second.py").write_text(
        "from trainer.first import First\n\n\nclass Second(First):\n    many = ('c',)\n\n\n"
        "class Third(Second):\n    x = 1\n"
    )

    def read_attribute(target: str, name: str) -> object:
        return attribute(target, name, package)

    assert read_attribute("trainer.first.First", "kind") == "one"
    assert read_attribute("trainer.first.First", "made") is None
    assert read_attribute("trainer.second.Second", "many") == ("c",)
    assert read_attribute("trainer.second.Third", "many") == ("c",)
    assert read_attribute("trainer.second.Third", "kind") == "one"
    assert read_attribute("trainer.second.Fourth", "kind") is None
    assert read_attribute("trainer.nowhere.Fourth", "kind") is None
    assert read_attribute("other.Fourth", "kind") is None
