"""The user's own files: every value as it stands, and one message with the place for whatever cannot be used."""

import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from trainer.data.files import Files
from trainer.data.rows import split_of
from trainer.errors import ConfigError, DataError

SHARES = {"validation": 0.1, "test": 0.1}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(train: str | list[str] = "train.csv", **changes: Any) -> Files:
    arguments = {"validation": None, "test": None, "text": "text", "label": "label", "split": SHARES}
    signs = {"separator": None, "quote": '"', "cache_dir": "cache"}
    return Files(train, **arguments | signs | changes)


def json_lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


@pytest.mark.parametrize("value", [1, True, 1.0])
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_labels_that_are_numbers_become_strings(name: str, value: float) -> None:
    Path("other.csv").write_text("text,label\na,b\n")
    if name == "a.jsonl":
        Path(name).write_text(json_lines([{"text": "x", "label": value}, {"text": 5, "label": None}]))
    else:
        parquet.write_table(pa.table({"text": ["x", "5"], "label": [value, None]}), name)

    train = files(name, validation="other.csv", split=SHARES | {"test": 0}).load()["train"]

    assert train.to_dict() == {"text": ["x"], "label": ["1"], "row": [1]}


def test_a_split_of_each_file() -> None:
    Path("a.csv").write_text("text,label\na,b\nc,d\n")
    Path("b.jsonl").write_text(json_lines([{"text": "你好", "label": "正"}]), encoding="utf-8")
    Path("c.csv").write_text("label,text,more\nb,a,c\n")

    source = files(["b.jsonl", "a.csv"], validation="c.csv", test="b.csv")
    Path("b.csv").write_text("text,label\na,b\n")
    splits = source.load()

    train = splits["train"]
    assert {name: feature.dtype for name, feature in train.features.items()} == {
        "text": "string", "label": "string", "row": "int64",
    }  # fmt: skip
    assert list(zip(train["text"], train["label"], strict=True)) == [("你好", "正"), ("a", "b"), ("c", "d")]
    assert [source.where("train", row) for row in train["row"]] == ["b.jsonl, row 1", "a.csv, row 1", "a.csv, row 2"]
    assert splits["test"].to_dict() == splits["validation"].to_dict() == {"text": ["a"], "label": ["b"], "row": [1]}
    assert source.where("test", 1) == "b.csv, row 1"


def test_columns_of_any_name_and_another_separator() -> None:
    Path("train.csv").write_text("编号;标签;文本\n1;正;你好\n2;负;再见\n", encoding="utf-8")
    Path("other.csv").write_text("文本;标签\n好;正\n", encoding="utf-8")

    source = files(text="文本", label="标签", validation="other.csv", split=SHARES | {"test": 0}, separator=";")

    assert source.load()["train"]["text"][:] == ["你好", "再见"]
    assert list(source.load()) == ["train", "validation"]
    assert source.column("label") == "data.label=标签"


def test_quotes_may_be_ordinary_signs() -> None:
    Path("train.tsv").write_text('text\tlabel\n"Hello" he said\tx\nan "open one\ty\n')
    Path("other.tsv").write_text("text\tlabel\na\tx\n")

    splits = files("train.tsv", validation="other.tsv", split=SHARES | {"test": 0}, quote=None).load()

    assert splits["train"]["text"][:] == ['"Hello" he said', 'an "open one']


def write_many(name: str, numbers: range) -> None:
    Path(name).write_text("text,label\n" + "".join(f"number {n},{n % 2}\n" for n in numbers))


def test_shares_follow_the_text_and_rows_still_know_their_place() -> None:
    Path("data").mkdir()
    write_many("data/b.csv", range(1000, 2000))
    write_many("data/a.csv", range(1200))
    source = files("data/*.csv")

    splits = source.load()

    assert sum(map(len, splits.values())) == 2200
    assert len(splits["validation"]) == pytest.approx(220, rel=0.2)
    for split, rows in splits.items():
        for text, row in zip(rows["text"], rows["row"], strict=True):
            name, number = source.where(split, row).split(", row ")
            assert Path(name).read_text().splitlines()[int(number)].startswith(f"{text},")
            assert split_of(text, SHARES) == split
    assert not set(splits["train"]["text"]) & (set(splits["test"]["text"]) | set(splits["validation"]["text"]))


def test_the_order_of_rows_moves_none_to_another_split() -> None:
    write_many("a.csv", range(300))
    write_many("b.csv", range(299, -1, -1))

    forward, backward = files("a.csv").load(), files("b.csv").load()

    assert {split: sorted(rows["text"]) for split, rows in forward.items()} == {
        split: sorted(rows["text"]) for split, rows in backward.items()
    }


def test_a_given_file_lends_nothing_and_a_missing_split_takes_its_share() -> None:
    write_many("train.csv", range(300))
    write_many("held.csv", range(20))

    splits = files(validation="held.csv").load()

    assert [len(splits[split]) for split in ("train", "validation")] == [300 - len(splits["test"]), 20]
    assert {split_of(text, {"test": 0.1}) for text in splits["test"]["text"]} == {"test"}


@pytest.mark.parametrize("times", [1, 2])
def test_rows_without_text_or_label_are_left_out_with_one_warning(times: int, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (
        [{"text": "a", "label": "x"}],
        [{"text": None, "label": "x"}, {"text": "b"}, {"text": "c", "label": "y"}],
    )
    Path("a.jsonl").write_text(json_lines(first))
    Path("b.jsonl").write_text('{"text": "b", "label": NaN}\n' + json_lines(second))
    Path("held.csv").write_text("text,label\n,x\na,\n  ,y\nd,x\n")
    source = files(["a.jsonl", "b.jsonl"], validation="held.csv", split=SHARES | {"test": 0})

    for _ in range(times):
        caplog.clear()
        splits = source.load()

    assert caplog.record_tuples == [
        ("trainer.data.files", logging.WARNING, f"data.{split}: {text}")
        for split, text in [
            ("train", "rows without a text or a label are left out: 3, the first is b.jsonl, row 1"),
            ("validation", "rows without a text or a label are left out: 3, the first is held.csv, row 1"),
        ]
    ]
    assert splits["train"]["text"][:] == ["a", "c"]
    assert [source.where("train", row) for row in splits["train"]["row"]] == ["a.jsonl, row 1", "b.jsonl, row 4"]
    assert splits["validation"]["text"][:] == ["d"]


def test_the_data_stays_on_disk(tmp_path: Path) -> None:
    long = "a text of some length " * 20
    Path("train.csv").write_text("text,label\n" + "".join(f"{long} {n},{n % 2}\n" for n in range(30_000)))
    before = pa.total_allocated_bytes()

    train = files().load()["train"]

    assert Path(train.cache_files[0]["filename"]).is_relative_to(tmp_path / "cache")
    assert train.data.nbytes > 10_000_000
    assert len(train.data.column("text").chunks) > 1  # written in batches
    assert pa.total_allocated_bytes() - before < 1_000_000
    assert os.listdir("cache/trainer_files") == [files().fingerprint]


def test_the_fingerprint_follows_content_and_parameters_not_the_place() -> None:
    write_many("train.csv", range(100))
    write_many("moved.csv", range(100))
    Path("moved.jsonl").write_bytes(Path("moved.csv").read_bytes())
    known = files().fingerprint

    assert files("moved.csv").fingerprint == files("*ved.csv").fingerprint == known
    assert not Path("cache").exists()
    others = [
        files("moved.jsonl"),
        files(label="text2"),
        files(split=SHARES | {"test": 0.2}),
        files(separator=";"),
        files(quote=None),
        files(["train.csv", "moved.csv"]),
        files(validation="moved.csv"),
        files(test="moved.csv"),
    ]
    write_many("train.csv", range(99))
    assert len({known, files().fingerprint, *(other.fingerprint for other in others[:4])}) == 6
    assert len({known, *(other.fingerprint for other in others)}) == 9


UNUSABLE: dict[str, tuple[str, bytes, str]] = {
    "header": ("a.csv", b"text,label\n", "a.csv: holds no rows."),
    "blank": ("a.jsonl", b"\n\n", "a.jsonl: holds no rows."),
    "nothing": ("a.json", b"[]", "a.json: holds no rows."),
    "json cell": (
        "a.jsonl",
        b'{"text": "a", "label": "b"}\n{"text": ["a"], "label": "b"}\n',
        "a.jsonl, row 2, column 'text': expected a string, got list.",
    ),
    "surrogate": (
        "a.jsonl",
        b'{"text": "\\ud83d", "label": "b"}\n',
        "a.jsonl, row 1, column 'text': half of a surrogate",
    ),
    "nulls": ("a.csv", b"text,label\na,\nb,\n", "a.csv: no row has both data.text=text and data.label=label."),
    "suffix": ("a.xlsx", b"PK", "a.xlsx: is of no format that can be read. Formats: .arrow, .csv, .csv.gz,"),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_what_cannot_be_used_is_one_message_with_its_place(case: str, split: str) -> None:
    name, content, message = UNUSABLE[case]
    Path(name).write_bytes(content)
    write_many("good.csv", range(100))
    source = files(**{"train": "good.csv"} | {split: name})

    with pytest.raises(DataError, match="^.*" + re.escape(message)) as caught:
        source.load()

    assert len(caught.value.messages) == 1
    assert "\n" not in str(caught.value)
    assert not Path("cache/trainer_files").exists() or not os.listdir("cache/trainer_files")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("data/trian.csv", "data.train: no such file, got 'data/trian.csv'. Did you mean data/train.csv."),
        ("nowhere/a.csv", "data.train: no such file, got 'nowhere/a.csv'. Paths are relative to /"),
        ("data/*.tsv", "data.train: no such file, got 'data/*.tsv'."),
        (
            ["data/train.csv", "data"],
            "data.train: expected a file, not a folder, got 'data'. Name its files: data/*.csv.",
        ),
    ],
)
def test_a_path_without_a_file_is_one_message(given: str | list[str], message: str) -> None:
    Path("data").mkdir()
    write_many("data/train.csv", range(100))

    with pytest.raises(DataError, match="^" + re.escape(message)):
        _ = files(given).fingerprint


def test_a_name_with_brackets_is_a_name() -> None:
    write_many("a[1].csv", range(100))

    assert len(files("a[1].csv").load()["train"]) > 60


def test_one_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    write_many("train.csv", range(100))

    with pytest.raises(DataError, match=r"^data\.test: names a file of data\.train too, got "):
        files(test=str(tmp_path / "train.csv")).load()


def test_a_split_without_rows_is_one_message() -> None:
    write_many("train.csv", range(3))

    with pytest.raises(
        DataError, match=r"^data\.validation: of 3 rows of data\.train none .* data\.split, or name files"
    ):
        files().load()


def test_a_cache_that_cannot_be_written_is_one_message() -> None:
    write_many("train.csv", range(100))
    Path("cache").touch()

    with pytest.raises(DataError, match=r"^data\.cache_dir: cannot hold the splits: .*, got 'cache/trainer_files'\."):
        files().load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "text"}, "label: must be another column than data.text, got 'text'."),
        ({"split": {"validation": 0.1}}, "split: must hold validation and test, got {'validation': 0.1}."),
        ({"split": SHARES | {"dev": 0.1}}, "split: must hold validation and test, got "),
        ({"split": SHARES | {"test": 1}}, "split.test: must be a share in [0, 1), got 1."),
        ({"split": SHARES | {"test": -0.1}}, "split.test: must be a share in [0, 1), got -0.1."),
        ({"split": {"validation": 0.5, "test": 0.5}}, "split: leaves nothing to train on, got "),
        ({"split": {"validation": 0, "test": 0.5}}, "split.validation: a run needs a validation split, got 0."),
        ({"separator": "||"}, "separator: must be one character or null, got '||'."),
        ({"quote": ""}, "quote: must be one character or null, got ''."),
    ],
)
def test_parameters_out_of_range_are_refused_before_any_file_is_opened(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        files("nowhere.csv", **changes)


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^train: names no file, got \[\]\."):
        files([]).load()
