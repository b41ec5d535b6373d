"""What all data sets of scikit-learn share."""

import sys

import pytest

from trainer.data import bundled
from trainer.data.bundled import Rows
from trainer.data.digits import Digits
from trainer.data.rows import place
from trainer.errors import ConfigError


def rows() -> Rows:
    for number in range(300):
        yield {"features": {"a": float(number % 200), "b": 0.5}, "value": [float(number)]}


def test_splits_follow_from_the_features_alone() -> None:
    splits, values = bundled.load(rows(), ("features", "value")), bundled.load(rows(), ("value",))

    assert list(splits) == ["train", "validation", "test"]
    assert sum(map(len, splits.values())) == 300
    features = [{row["features"]["a"] for row in split} for split in splits.values()]
    assert sum(map(len, features)) == len(set.union(*features)) == 200
    for split in splits:
        assert splits[split]["value"][:] == values[split]["value"][:]
        assert [[float(place(row)[1] - 1)] for row in splits[split]["row"]] == splits[split]["value"][:]
    assert values["train"].column_names == ["value", "row"]


def test_the_fingerprint_follows_every_value_but_images() -> None:
    known = bundled.fingerprint_of("a", rows)

    assert known == bundled.fingerprint_of("a", lambda: ({**row, "image": 0} for row in rows()))
    assert known != bundled.fingerprint_of("b", rows)
    assert known != bundled.fingerprint_of("a", lambda: ({**row, "value": [0.0]} for row in rows()))


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)

    with pytest.raises(ConfigError, match=r"^_target_: .*scikit-learn.*Run pip install 'trainer\[examples\]'\.$"):
        Digits()
