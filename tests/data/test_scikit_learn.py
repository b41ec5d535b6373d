import sys

import pytest

from trainer.data.digits import Digits
from trainer.data.scikit_learn import Rows, ScikitLearnSource
from trainer.data.splits import split_row_id
from trainer.errors import ConfigError


def read_rows() -> Rows:
    for number in range(300):
        yield {"features": {"a": float(number % 200), "b": 0.5}, "value": [float(number)]}


def test_splits_depend_on_the_features_only() -> None:
    source = ScikitLearnSource("name", read_rows)

    splits, values = source.load(("features", "value")), source.load(("value",))

    assert list(splits) == ["train", "validation", "test"]
    assert sum(map(len, splits.values())) == 300
    features = [{row["features"]["a"] for row in split} for split in splits.values()]
    assert sum(map(len, features)) == len(set.union(*features)) == 200
    for split in splits:
        assert splits[split]["value"][:] == values[split]["value"][:]
        assert [[float(split_row_id(row)[1] - 1)] for row in splits[split]["row"]] == splits[split]["value"][:]
    assert values["train"].column_names == ["value", "row"]
    assert source.describe_row("test", splits["train"]["row"][0]).startswith("name, row ")
    assert source.describe_role("value") == "the column value of data=name"


def test_fingerprint_depends_on_every_value_except_images() -> None:
    fingerprint = ScikitLearnSource("a", read_rows).fingerprint

    assert fingerprint == ScikitLearnSource("a", lambda: ({**row, "image": 0} for row in read_rows())).fingerprint
    assert fingerprint != ScikitLearnSource("b", read_rows).fingerprint
    assert fingerprint != ScikitLearnSource("a", lambda: ({**row, "value": [0.0]} for row in read_rows())).fingerprint


def test_missing_scikit_learn_is_reported_with_the_command_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)

    with pytest.raises(ConfigError, match=r"^_target_: .*scikit-learn.*Run pip install 'trainer\[examples\]'\.$"):
        Digits()
