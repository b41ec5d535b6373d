"""Data sets of the library datasets, from folders; nothing here reaches for the network."""

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, config, disable_progress_bars

from trainer.data.hub import Hub
from trainer.data.splits import assign_split
from trainer.errors import ConfigError, DataError

SHARES = {"validation": 0.1, "test": 0.1}
ROLES = ("text", "text_pair", "positive", "negative", "label", "labels", "value", "score", "words", "tags", "image")
COLUMNS: dict[str, Any] = {role: role for role in ROLES} | {"features": None}
SPLITS: dict[str, str | None] = {"train": "train", "validation": None, "test": None}

FEATURES = Features(
    {
        "text": Value("string"),
        "label": ClassLabel(names=["负", "正"]),
        "words": List(Value("string")),
        "tags": List(ClassLabel(names=["O", "B-x"])),
        "size": Value("float32"),
        "image": Image(),
    }
)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    disable_progress_bars()


def hub(path: str = "data", **changes: Any) -> Hub:
    arguments = {"name": None, "revision": None, "splits": SPLITS, "columns": COLUMNS, "split": SHARES}
    return Hub(path, **arguments | {"list_separator": "|", "cache_dir": "cache"} | changes)


def rows(numbers: range) -> Dataset:
    columns: dict[str, list[Any]] = {
        "text": [f"number {n}" for n in numbers],
        "label": [n % 3 - 1 for n in numbers],
        "words": [["a", str(n)] for n in numbers],
        "tags": [[0, n % 2] for n in numbers],
        "size": [n / 2 for n in numbers],
        "image": [{"bytes": b"PNG%d" % n, "path": None} for n in numbers],
    }
    return Dataset.from_dict(columns, features=FEATURES)


@pytest.fixture(params=["saved dictionary", "saved", "parquet"])
def data(request: pytest.FixtureRequest) -> str:
    """A folder `data` with a training split of 300 rows, in one of the formats."""
    if request.param == "saved":
        rows(range(300)).save_to_disk("data")
    elif request.param == "parquet":
        Path("data").mkdir()
        rows(range(300)).to_parquet("data/train.parquet")
    else:
        DatasetDict({"train": rows(range(300))}).save_to_disk("data")
    return str(request.param)


def test_classes_have_names_and_images_stay_encoded(data: str) -> None:
    source = hub()

    splits = source.load(("text", "label", "image"))

    assert sum(map(len, splits.values())) == 200
    for split, found in splits.items():
        for row in found:
            number = int(row["text"].removeprefix("number "))
            assert row["label"] == ["负", "正"][number % 3 - 1]
            assert row["image"] == {"bytes": b"PNG%d" % number, "path": None}
            assert source.describe_row(split, row["row"]) == f"data, split train, row {number + 1}"


def test_shares_follow_the_inputs_and_what_is_left_out_is_told(caplog: pytest.LogCaptureFixture) -> None:
    DatasetDict({"train": rows(range(300))}).save_to_disk("data")

    splits = hub().load(("text", "label"))

    for split, found in splits.items():
        assert {assign_split(text, SHARES) for text in found["text"]} == {split}
    told = "data.train: dropped 100 rows without a text or a label; the first is data, split train, row 1"
    assert caplog.messages == [told]


def test_tags_values_and_features() -> None:
    DatasetDict({"train": rows(range(20)), "dev": rows(range(20, 23))}).save_to_disk("data")
    some = {"splits": SPLITS | {"validation": "dev"}, "split": SHARES | {"test": 0}}

    tagged = hub(**some).load(("words", "tags"))
    assert tagged["validation"].to_dict() == {
        "words": [["a", "20"], ["a", "21"], ["a", "22"]],
        "tags": [["O", "O"], ["O", "B-x"], ["O", "O"]],
        "row": [1, 2, 3],
    }
    source = hub(**some, columns=COLUMNS | {"value": "size", "features": ["size", "label"]})
    assert source.describe_row("validation", 3) == "data, split dev, row 3"
    assert source.load(("value",))["validation"]["value"][:] == [[10.0], [10.5], [11.0]]
    features = source.load(("features",))["validation"]["features"]
    assert [features[0], features[1]] == [{"size": 10.0, "label": "正"}, {"size": 10.5, "label": None}]


def test_the_fingerprint_follows_content_and_parameters_not_the_place(data: str) -> None:
    known = hub().fingerprint

    others = [hub(columns=COLUMNS | {"text": "label"}), hub(split=SHARES | {"test": 0.2}), hub(list_separator=" ")]
    assert len({known, *(source.fingerprint for source in others)}) == 4
    Path("data").rename("moved")
    assert hub("moved").fingerprint == known
    first = next(path for path in sorted(Path("moved").rglob("*")) if path.suffix in (".arrow", ".parquet"))
    first.write_bytes(first.read_bytes() + b"0")
    assert hub("moved").fingerprint != known


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"splits": SPLITS | {"validation": "trian"}},
            "data.splits.validation: the data set has no such split, got 'trian'. Did you mean train; data.spl",
        ),
        (
            {"splits": SPLITS | {"train": "x"}},
            "data.splits.train: the data set has no such split, got 'x'. Known: train.",
        ),
        (
            {"columns": COLUMNS | {"text": "txt"}},
            "data.columns.text: split train has no such column, got 'txt'. Did you mean text.",
        ),
        (
            {"columns": COLUMNS | {"text": "words"}},
            "data, split train, row 1, column 'words': expected a string, got list.",
        ),
    ],
)
def test_what_cannot_be_used_is_one_message(data: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match="^" + re.escape(message)):
        hub(**changes).load(("text",))


def test_a_split_without_labels_is_one_message() -> None:
    held = rows(range(0, 9, 3))
    DatasetDict({"train": rows(range(30)), "test": held}).save_to_disk("data")

    message = (
        r"^data\.splits\.test=test: no row has both data\.columns\.text=text and data\.columns\.label=label\. .*null"
    )
    with pytest.raises(DataError, match=message):
        hub(splits=SPLITS | {"test": "test"}).load(("text", "label"))


def test_a_configuration_that_is_not_there_is_one_message() -> None:
    Path("data").mkdir()
    rows(range(3)).to_parquet("data/train.parquet")

    with pytest.raises(DataError, match=r"^data\.name: the data set cannot be loaded \(.*not found.*\), got 'other'\."):
        hub(name="other").load(("text",))


def test_a_data_set_out_of_reach_says_what_to_do() -> None:
    assert config.HF_HUB_OFFLINE

    with pytest.raises(
        DataError, match=r"^data\.path: .*, got 'nobody/nothing'\. HF_HUB_OFFLINE is set, .*a folder\.$"
    ):
        _ = hub("nobody/nothing").fingerprint


def test_an_empty_folder_is_one_message() -> None:
    Path("data").mkdir()

    with pytest.raises(DataError, match=r"^data\.path: the data set cannot be loaded \(.*\), got 'data'\."):
        hub().load(("text",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"splits": {"train": "train"}}, "splits: must have the keys train, validation, test, got {'train': 'train'}."),
        ({"splits": SPLITS | {"train": None}}, "splits.train: must be the name of a split, got None."),
        ({"list_separator": ""}, "list_separator: must be one or more characters, got ''."),
        ({"columns": COLUMNS | {"foo": "a"}}, "columns.foo: unknown role, got 'a'."),
        ({"split": SHARES | {"test": 1.5}}, "split.test: must be in [0, 1), got 1.5."),
    ],
)
def test_parameters_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        hub(**changes)


def test_a_column_is_named_for_a_message() -> None:
    assert hub(columns=COLUMNS | {"value": ["a", "b"]}).describe_role("value") == "data.columns.value=[a,b]"
    assert hub().describe_role("features") == "data.columns.features=null"
