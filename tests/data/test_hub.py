"""Data sets of the datasets library, from folders; no test uses the network."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value, config, disable_progress_bars
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from trainer.data.hub import Hub
from trainer.data.splits import assign_split
from trainer.errors import ConfigError, DataError

SHARES = {"validation": 0.1, "test": 0.1}
ROLES = (
    "text",
    "text_pair",
    "positive",
    "negative",
    "label",
    "labels",
    "value",
    "score",
    "words",
    "tags",
    "spans",
    "image",
)
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
def _quiet(working_folder: Path) -> None:
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
    """Write a folder `data` with a training split of 300 rows in one of the formats."""
    if request.param == "saved":
        rows(range(300)).save_to_disk("data")
    elif request.param == "parquet":
        Path("data").mkdir()
        rows(range(300)).to_parquet("data/train.parquet")
    else:
        DatasetDict({"train": rows(range(300))}).save_to_disk("data")
    return str(request.param)


HEAD = "---\nconfigs:\n- data_files:\n  - split: train\n    path: [{}]\n---\n# A page\n"
OUTSIDE = {
    "an absolute path": ("README.md", HEAD.format("/etc/*")),
    "a parent": ("README.md", HEAD.format("a.csv, ../*.csv")),
    "a URL": ("README.md", HEAD.format("'https://host/x.csv'")),
    "a URL in a chain": (".huggingface.yaml", "configs: [{data_files: 'zip://x.csv::https://host/y.zip'}]"),
    "a folder": ("README.md", "---\nconfigs: [{data_dir: /etc}]\n---\n"),
    "a mark of the byte order": ("README.md", "\ufeff" + HEAD.format("/etc/*")),
    "an empty line before the head": ("README.md", "\n" + HEAD.format("/etc/*")),
    "a blank after the head": ("README.md", HEAD.format("/etc/*").replace("\n---\n", "\n--- \n")),
    "a rare end of a line": ("README.md", HEAD.format("/etc/*").replace("configs", "#\u2028---\u2028\nconfigs")),
    "a saved file": ("train/state.json", json.dumps({"_data_files": [{"filename": "/x.arrow"}]})),
    "a saved split": ("dataset_dict.json", json.dumps({"splits": ["../train"]})),
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_folder_names_no_data_outside_of_it(name: str) -> None:
    file, text = OUTSIDE[name]
    Path("data/train").mkdir(parents=True)
    if file == "train/state.json":
        Path("data/dataset_dict.json").write_text('{"splits": ["train"]}', encoding="utf-8")
    Path("data", file).write_text(text, encoding="utf-8")
    message = rf"^data/{re.escape(file)}: names data outside of its folder, got "
    if name == "a blank after the head" and not REGEX_YAML_BLOCK.search(text):
        # huggingface-hub 1.5 finds no head there, so nothing that it names is read.
        message = "^data.path: the data set cannot be loaded .* contain any data files"
    with pytest.raises(DataError, match=message):
        hub().load(["text"])


def test_links_out_of_a_folder_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    rows(range(100)).to_parquet("elsewhere.parquet")
    Path("data").mkdir()
    Path("data/train.parquet").symlink_to(Path("elsewhere.parquet").absolute())
    hub().load(["text"])
    assert caplog.messages[0].startswith(
        "data.path: followed links out of data to 1 place; the first is data/train.par"
    )


NO_DOCUMENTS = {
    "no YAML": ("README.md", "---\na: b: c\n---\n", "cannot be read (mapping values are not allowed here). Mend it"),
    "no UTF-8": ("README.md", "\udcff", "cannot be read ('utf-8' codec can't decode byte 0xff"),
    "aliases": (
        "README.md",
        f"---\na: &a [{'0,' * 999}]\nb: &b [{'*a,' * 999}]\nconfigs: [{{data_files: [{'*b,' * 999}]}}]\n---\n",
        "cannot be read (has more than 1000000 values). Mend it",
    ),
    "no Arrow file": (
        "state.json",
        '{"_data_files": [{"filename": "x.bin"}]}',
        "cannot be read (names 'x.bin', which is no .arrow file). Mend it",
    ),
    "no object": ("state.json", "[1]", "cannot be read (must be an object, got [1]). Mend it"),
}


@pytest.mark.parametrize("name", NO_DOCUMENTS)
def test_a_document_that_cannot_be_checked_is_an_error(name: str) -> None:
    file, text, problem = NO_DOCUMENTS[name]
    Path("data").mkdir()
    Path("data", file).write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(DataError, match=rf"^data/{re.escape(file)}: {re.escape(problem)}"):
        hub().load(["text"])


def test_documents_that_the_library_does_not_read_may_have_any_contents() -> None:
    head = "---\nconfigs: [{config_name: default, data_files: '*.csv'}]\n---\n"
    for folder in ("data", "saved"):
        Path(folder, "more").mkdir(parents=True)
    Path("data/README.md").write_text(head, encoding="utf-8")
    Path("data/train.csv").write_text("text,label\n" + "".join(f"a{n},b\n" for n in range(60)), encoding="utf-8")
    Path("data/more/state.json").write_text('{"state": "Ohio"}\n{"state": "Iowa"}\n', encoding="utf-8")
    assert set(hub().load(["text"])) == {"train", "validation", "test"}
    rows(range(60)).save_to_disk("saved")
    Path("saved/README.md").write_text("---\nconfigs: [{data_dir: /etc}]\n---\n", encoding="utf-8")
    assert set(hub(path="saved").load(["text"])) == {"train", "validation", "test"}


def test_data_that_the_library_cannot_read_is_an_error_of_the_data() -> None:
    Path("data").mkdir()
    page = "---\nconfigs: [{config_name: default, data_files: '*.csv', converters: {text: eval}}]\n---\n"
    Path("data/README.md").write_text(page, encoding="utf-8")
    Path("data/train.csv").write_text("text,label\na,b\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"^data\.path: the data set cannot be loaded \("):
        hub().load(["text"])


UNREADABLE = {
    "CSV": ("train.csv", b'text,label\na,b\n"x', "EOF inside string"),
    "UTF-8": ("train.csv", b"text\n\xff\xfe\n", "codec can't decode byte"),
    "JSON": ("train.json", b'{"text": "a"}\n{"text":', "JSON parse error"),
    "Parquet": ("train.parquet", b"PAR1", "Parquet"),
    "nothing": ("note.unknown", b"", "data files"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_the_cause_of_a_file_that_cannot_be_read_is_reported(name: str) -> None:
    file, contents, cause = UNREADABLE[name]
    Path("data").mkdir()
    Path("data", file).write_bytes(contents)
    with pytest.raises(DataError, match=rf"^data\.path: .*{cause}.*, got 'data'\. Mend its files, or name them with"):
        hub().load(["text"])


def test_an_unknown_configuration_is_an_error_of_its_key() -> None:
    Path("data").mkdir()
    Path("data/train.csv").write_text("text,label\na,b\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=r"^data\.name: .*'foo' not found.*, got 'foo'\. Name one of its configurations"
    ):
        hub(name="foo").load(["text"])


def test_several_splits_are_validation_sets() -> None:
    tables = {"train": rows(range(60)), "dev": rows(range(60, 80)), "web": rows(range(80, 110))}
    DatasetDict(tables).save_to_disk("data")
    source = hub(splits=SPLITS | {"validation": {"clean": "dev", "noisy": "web"}}, split=SHARES | {"test": 0})
    splits = source.load(("text", "label"))
    assert {name: len(found) for name, found in splits.items()} == {
        "train": 40,  # a third has no class
        "validation/clean": 13,
        "validation/noisy": 20,
    }
    assert source.describe_row("validation/noisy", splits["validation/noisy"]["row"][0]).startswith("data, split web, ")
    with pytest.raises(DataError, match=r"data\.splits\.validation\.noisy: the data set has no such split, got 'wob'"):
        hub(splits=SPLITS | {"validation": {"clean": "dev", "noisy": "wob"}}).load(("text",))


def test_several_splits_train_and_their_rows_are_found() -> None:
    tables = {"train": rows(range(60)), "extra": rows(range(60, 90))}
    DatasetDict(tables).save_to_disk("data")
    source = hub(splits=SPLITS | {"train": ["train", "extra"]})
    splits = source.load(("text", "label"))
    whole = hub(splits=SPLITS).load(("text", "label"))
    assert {name: found["text"][: len(whole[name])] for name, found in splits.items()} == {
        name: found["text"][:] for name, found in whole.items()
    }  # held out by the same hash, from both
    for split, found in splits.items():
        for text, row in zip(found["text"], found["row"], strict=True):
            number = int(text.removeprefix("number "))
            own, first = ("train", 0) if number < 60 else ("extra", 60)
            assert source.locate_row(split, row) == (own, number - first + 1)
            assert source.describe_row(split, row) == f"data, split {own}, row {number - first + 1}"
    assert {row for row, _ in source.read_columns("train", ["size"])} >= set(splits["train"]["row"])
    assert hub(splits=SPLITS).locate_row("train", 7) == (None, 7)


def test_classes_become_names_and_images_stay_encoded(data: str) -> None:
    source = hub()

    splits = source.load(("text", "label", "image"))

    assert sum(map(len, splits.values())) == 200
    for split, found in splits.items():
        for row in found:
            number = int(row["text"].removeprefix("number "))
            assert row["label"] == ["负", "正"][number % 3 - 1]
            assert row["image"] == {"bytes": b"PNG%d" % number, "path": None}
            assert source.describe_row(split, row["row"]) == f"data, split train, row {number + 1}"


def test_shares_depend_on_the_inputs_and_dropped_rows_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    DatasetDict({"train": rows(range(300))}).save_to_disk("data")

    splits = hub().load(("text", "label"))

    for split, found in splits.items():
        assert {assign_split(text, SHARES) for text in found["text"]} == {split}
    warning = "data.train: dropped 100 rows without a text or a label; the first is data, split train, row 1"
    assert caplog.messages == [warning]


def test_tags_values_and_features_are_read() -> None:
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


def test_fingerprint_depends_on_content_and_arguments_but_not_on_the_path(data: str) -> None:
    fingerprint = hub().fingerprint

    others = [hub(columns=COLUMNS | {"text": "label"}), hub(split=SHARES | {"test": 0.2}), hub(list_separator=" ")]
    assert len({fingerprint, *(source.fingerprint for source in others)}) == 4
    orders: dict[str, Any] = {"splits": SPLITS, "columns": COLUMNS, "split": SHARES}
    assert hub(**{key: dict(reversed(value.items())) for key, value in orders.items()}).fingerprint == fingerprint
    Path("data").rename("moved")
    assert hub("moved").fingerprint == fingerprint
    first = next(path for path in sorted(Path("moved").rglob("*")) if path.suffix in (".arrow", ".parquet"))
    first.write_bytes(first.read_bytes() + b"0")
    assert hub("moved").fingerprint != fingerprint


@pytest.mark.parametrize("cut", [8, 400, -300])
def test_a_damaged_file_of_a_folder_is_an_error(cut: int) -> None:
    DatasetDict({"train": rows(range(300))}).save_to_disk("data")
    (file,) = Path("data").rglob("*.arrow")
    file.write_bytes(file.read_bytes()[:cut])

    with pytest.raises(DataError, match=r"\.arrow: cannot be read"):
        hub().load(("text", "label"))


def test_unknown_split_or_column_is_one_message() -> None:
    DatasetDict({"train": rows(range(300))}).save_to_disk("data")
    no_split = "the data set has no such split"
    for changes, message in (
        (
            {"splits": SPLITS | {"validation": "trian"}},
            f"data.splits.validation: {no_split}, got 'trian'. Did you mean",
        ),
        ({"splits": SPLITS | {"train": "x"}}, f"data.splits.train: {no_split}, got 'x'. Known: train."),
        (
            {"columns": COLUMNS | {"text": "txt"}},
            "data.columns.text: split train has no such column, got 'txt'. Did you mean text?",
        ),
        (
            {"columns": COLUMNS | {"text": "words"}},
            "data, split train, row 1, column 'words': expected a string, got list.",
        ),
    ):
        with pytest.raises(DataError, match="^" + re.escape(message)):
            hub(**changes).load(("text",))


def test_split_without_labels_is_one_message() -> None:
    held = rows(range(0, 9, 3))
    DatasetDict({"train": rows(range(30)), "test": held}).save_to_disk("data")

    message = (
        r"^data\.splits\.test=test: no row has both data\.columns\.text=text and data\.columns\.label=label\. .*null"
    )
    with pytest.raises(DataError, match=message):
        hub(splits=SPLITS | {"test": "test"}).load(("text", "label"))


def test_unknown_configuration_is_one_message() -> None:
    Path("data").mkdir()
    rows(range(3)).to_parquet("data/train.parquet")

    with pytest.raises(DataError, match=r"^data\.name: the data set cannot be loaded \(.*not found.*\), got 'other'\."):
        hub(name="other").load(("text",))


def test_unreachable_data_set_is_one_message_with_a_remedy() -> None:
    assert config.HF_HUB_OFFLINE

    with pytest.raises(
        DataError, match=r"^data\.path: .*, got 'nobody/nothing'\. HF_HUB_OFFLINE is set, .*a folder\.$"
    ):
        _ = hub("nobody/nothing").fingerprint


def test_empty_folder_is_one_message() -> None:
    Path("data").mkdir()

    with pytest.raises(DataError, match=r"^data\.path: the data set cannot be loaded \(.*\), got 'data'\."):
        hub().load(("text",))


def test_arguments_out_of_range_are_rejected() -> None:
    for changes, key in (
        ({"path": ""}, "path"),
        ({"splits": {"train": "train"}}, "splits"),
        ({"splits": SPLITS | {"train": None}}, r"splits\.train"),
        ({"splits": SPLITS | {"test": {"a": "x"}}}, r"splits\.test"),
        (
            {"splits": SPLITS | {"validation": {"a": "x", "A": "y"}}},
            r"splits\.validation",
        ),
        ({"list_separator": ""}, "list_separator"),
        ({"columns": COLUMNS | {"foo": "a"}}, r"columns\.foo"),
        ({"columns": COLUMNS | {"label": ["a", "b"]}}, r"columns\.\*"),
        ({"columns": COLUMNS | {"text": ["a", "a"]}}, r"columns\.text"),
        ({"split": SHARES | {"test": 1.5}}, r"split\.test"),
        ({"split": {"validation": 0.5, "test": 0.5}}, "split"),
        ({"split": {"validation": 0, "test": 0.5}}, r"split\.validation"),
    ):
        with pytest.raises(ConfigError, match=f"^{key}: "):
            hub(**changes)
    own = {"train": "train", "validation": "dev", "test": "test"}
    hub(splits=own, split={"validation": 0.0, "test": 0.9})


def test_columns_are_named_for_messages() -> None:
    assert hub(columns=COLUMNS | {"value": ["a", "b"]}).describe_role("value") == "data.columns.value=[a,b]"
    assert hub().describe_role("features") == "data.columns.features=null"
