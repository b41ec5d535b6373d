import re
from pathlib import Path

import pytest

import trainer
from trainer.errors import ConfigError, did_you_mean, format_error, raise_if_any


def test_all_messages_are_raised_together() -> None:
    raise_if_any()
    raise_if_any(None, None)
    with pytest.raises(ConfigError) as caught:
        raise_if_any("a: is wrong.", None, "b: too.")

    assert caught.value.messages == ("a: is wrong.", "b: too.")
    assert str(caught.value) == "a: is wrong.\nb: too."


def test_message_has_key_problem_value_and_remedy() -> None:
    assert format_error("optimizer.lr", "must be above 0", value=-1) == "optimizer.lr: must be above 0, got -1."
    assert (
        format_error("data.text", "is no column", "Did you mean body") == "data.text: is no column. Did you mean body?"
    )
    assert format_error("run", "there is none", "Has it a name?", value=None).endswith("got null. Has it a name?")


def test_nearest_known_name_is_suggested() -> None:
    assert did_you_mean("adam", ["lamb", "adamw", "sgd"]) == "Did you mean adamw"
    assert did_you_mean("xyz", ["sgd", "lamb"]) == "Known: lamb, sgd"
    assert did_you_mean("xyz", []) == ""


def test_remedies_name_keys_with_their_group() -> None:
    """`Use threshold=null` cannot be typed: the key on the command line is task.threshold."""
    remedy = re.compile(r'"(?:Use|Set) (\w+)=')
    groups = {"backend", "checkpoint", "data", "decode", "device", "loss", "model", "optimizer", "precision", "resume"}
    top_level = groups | {"devices", "force", "scheduler", "shard", "start", "task", "weights"}
    package = Path(trainer.__file__).parent
    keys = {
        (file.name, key)
        for file in package.rglob("*.py")
        for key in remedy.findall(file.read_text(encoding="utf-8"))
        if key not in top_level
    }

    assert not keys
