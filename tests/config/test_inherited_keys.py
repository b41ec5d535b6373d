"""A part of the user's own that is derived from a part of an option keeps the option's keys."""

from pathlib import Path

import pytest

from trainer.config.command import check_command
from trainer.errors import ConfigError

MODULE = """
import trainer.loss.focal as focal
from trainer.task.text_classification import TextClassification


class Plain(TextClassification):
    pass


class Extended(Plain):
    def __init__(self, weight: float = 0.5, **options) -> None:
        super().__init__(**options)


class Chosen(TextClassification):
    def __init__(self, max_length: int) -> None:
        super().__init__(max_length, 100, None, True)


class Loss(focal.Focal):
    pass


class Other:
    def __init__(self, max_length: int = 3) -> None: ...
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_parts.py").write_text(MODULE, encoding="utf-8")


@pytest.mark.parametrize(
    ("overrides", "kept", "dropped"),
    [
        (["task._target_=my_parts.Plain"], ["task.max_length", "task.vocab_size"], []),
        (["task._target_=my_parts.Extended"], ["task.max_length", "task.tokenizer"], []),
        (["task._target_=my_parts.Extended", "+task.weight=0.1"], ["task.lowercase", "task.weight"], []),
        (["task._target_=my_parts.Chosen"], ["task.max_length"], ["task.vocab_size", "task.lowercase"]),
        (["loss=focal", "loss._target_=my_parts.Loss"], ["loss.gamma"], []),
        (["loss=focal", "loss._target_=my_parts.Other"], [], ["loss.gamma"]),
        (["task._target_=my_parts.Other"], [], ["task.max_length", "task.vocab_size"]),
    ],
)
def test_derived_part_keeps_the_keys_that_it_takes(overrides: list[str], kept: list[str], dropped: list[str]) -> None:
    command = check_command("train", overrides)
    assert command.single is not None
    config = command.single.config
    present = {f"{group}.{key}" for group in ("task", "loss") for key in config[group]}
    assert present.issuperset(kept)
    assert present.isdisjoint(dropped)
    notes = " ".join(command.notes)
    assert all(key in notes for key in dropped)


def test_classes_of_an_installed_package_keep_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site" / "their_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from their_package.tasks import Mine, Other\n", encoding="utf-8")
    (package / "tasks.py").write_text(
        "from their_package.base import Plain\nclass Mine(Plain): pass\nclass Other: pass\n", encoding="utf-8"
    )
    (package / "base.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.syspath_prepend(package.parent)
    for target, keeps in {"tasks.Mine": True, "Mine": True, "base.Plain": True, "Other": False}.items():
        command = check_command("train", [f"task._target_=their_package.{target}"])
        assert command.single is not None
        assert ("max_length" in command.single.config["task"]) == keeps, target
    kept = check_command("train", ["task._target_=their_package.base.Chosen"])
    assert kept.single is not None
    assert {"max_length"} == kept.single.config["task"].keys() & {"max_length", "vocab_size", "lowercase"}


def test_kept_keys_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"task.max_length: .*got 1"):
        check_command("train", ["task._target_=my_parts.Plain", "task.max_length=1"])
