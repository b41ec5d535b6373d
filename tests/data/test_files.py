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
from trainer.data.splits import assign_split
from trainer.errors import ConfigError, DataError

SHARES = {"validation": 0.1, "test": 0.1}
ROLES = ("text_pair", "positive", "negative", "labels", "value", "score", "words", "tags", "image")
COLUMNS: dict[str, Any] = {role: role for role in ROLES} | {"features": None}


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files(train: str | list[str] = "train.csv", **changes: Any) -> Files:
    arguments = {
        "validation": None,
        "test": None,
        "text": "text",
        "label": "label",
        "columns": COLUMNS,
        "split": SHARES,
    }
    signs = {"list_separator": "|", "separator": None, "quote": '"', "cache_dir": "cache"}
    return Files(train, **arguments | signs | changes)


BOTH = ("text", "label")


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

    train = files(name, validation="other.csv", split=SHARES | {"test": 0}).load(BOTH)["train"]

    assert train.to_dict() == {"text": ["x"], "label": ["1"], "row": [1]}


def test_a_split_of_each_file() -> None:
    Path("a.csv").write_text("text,label\na,b\nc,d\n")
    Path("b.jsonl").write_text(json_lines([{"text": "你好", "label": "正"}]), encoding="utf-8")
    Path("c.csv").write_text("label,text,more\nb,a,c\n")

    source = files(["b.jsonl", "a.csv"], validation="c.csv", test="b.csv")
    Path("b.csv").write_text("text,label\na,b\n")
    splits = source.load(BOTH)

    train = splits["train"]
    assert {name: feature.dtype for name, feature in train.features.items()} == {
        "text": "string", "label": "string", "row": "int64",
    }  # fmt: skip
    assert list(zip(train["text"], train["label"], strict=True)) == [("你好", "正"), ("a", "b"), ("c", "d")]
    assert [source.describe_row("train", row) for row in train["row"]] == [
        "b.jsonl, row 1",
        "a.csv, row 1",
        "a.csv, row 2",
    ]
    assert splits["test"].to_dict() == splits["validation"].to_dict() == {"text": ["a"], "label": ["b"], "row": [1]}
    assert source.describe_row("test", 1) == "b.csv, row 1"


def test_columns_of_any_name_and_another_separator() -> None:
    Path("train.csv").write_text("编号;标签;文本\n1;正;你好\n2;负;再见\n", encoding="utf-8")
    Path("other.csv").write_text("文本;标签\n好;正\n", encoding="utf-8")

    source = files(text="文本", label="标签", validation="other.csv", split=SHARES | {"test": 0}, separator=";")

    assert source.load(BOTH)["train"]["text"][:] == ["你好", "再见"]
    assert list(source.load(BOTH)) == ["train", "validation"]
    assert source.describe_role("label") == "data.label=标签"


def test_quotes_may_be_ordinary_signs() -> None:
    Path("train.tsv").write_text('text\tlabel\n"Hello" he said\tx\nan "open one\ty\n')
    Path("other.tsv").write_text("text\tlabel\na\tx\n")

    splits = files("train.tsv", validation="other.tsv", split=SHARES | {"test": 0}, quote=None).load(BOTH)

    assert splits["train"]["text"][:] == ['"Hello" he said', 'an "open one']


def write_many(name: str, numbers: range) -> None:
    Path(name).write_text("text,label\n" + "".join(f"number {n},{n % 2}\n" for n in numbers))


def test_shares_follow_the_text_and_rows_still_know_their_place() -> None:
    Path("data").mkdir()
    write_many("data/b.csv", range(1000, 2000))
    write_many("data/a.csv", range(1200))
    source = files("data/*.csv")

    splits = source.load(BOTH)

    assert sum(map(len, splits.values())) == 2200
    assert len(splits["validation"]) == pytest.approx(220, rel=0.2)
    for split, rows in splits.items():
        for text, row in zip(rows["text"], rows["row"], strict=True):
            name, number = source.describe_row(split, row).split(", row ")
            assert Path(name).read_text().splitlines()[int(number)].startswith(f"{text},")
            assert assign_split(text, SHARES) == split
    assert not set(splits["train"]["text"]) & (set(splits["test"]["text"]) | set(splits["validation"]["text"]))


def test_the_order_of_rows_moves_none_to_another_split() -> None:
    write_many("a.csv", range(300))
    write_many("b.csv", range(299, -1, -1))

    forward, backward = files("a.csv").load(BOTH), files("b.csv").load(BOTH)

    assert {split: sorted(rows["text"]) for split, rows in forward.items()} == {
        split: sorted(rows["text"]) for split, rows in backward.items()
    }


def test_a_given_file_lends_nothing_and_a_missing_split_takes_its_share() -> None:
    write_many("train.csv", range(300))
    write_many("held.csv", range(20))

    splits = files(validation="held.csv").load(BOTH)

    assert [len(splits[split]) for split in ("train", "validation")] == [300 - len(splits["test"]), 20]
    assert {assign_split(text, {"test": 0.1}) for text in splits["test"]["text"]} == {"test"}


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
        splits = source.load(BOTH)

    assert caplog.record_tuples == [
        ("trainer.data.splits", logging.WARNING, f"data.{split}: {text}")
        for split, text in [
            ("train", "dropped 3 rows without a text or a label; the first is b.jsonl, row 1"),
            ("validation", "dropped 3 rows without a text or a label; the first is held.csv, row 1"),
        ]
    ]
    assert splits["train"]["text"][:] == ["a", "c"]
    assert [source.describe_row("train", row) for row in splits["train"]["row"]] == ["a.jsonl, row 1", "b.jsonl, row 4"]
    assert splits["validation"]["text"][:] == ["d"]


def test_the_data_stays_on_disk(tmp_path: Path) -> None:
    long = "a text of some length " * 20
    Path("train.csv").write_text("text,label\n" + "".join(f"{long} {n},{n % 2}\n" for n in range(30_000)))
    before = pa.total_allocated_bytes()

    train = files().load(BOTH)["train"]

    assert Path(train.cache_files[0]["filename"]).is_relative_to(tmp_path / "cache")
    assert train.data.nbytes > 10_000_000
    assert len(train.data.column("text").chunks) > 1  # written in batches
    assert pa.total_allocated_bytes() - before < 1_000_000
    (folder,) = os.listdir("cache/trainer_files")
    assert folder.startswith(f"{files().fingerprint}-")


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


def loaded(content: str, roles: tuple[str, ...], name: str = "train.csv", **changes: Any) -> list[dict[str, Any]]:
    """The rows of a training file beside a validation file of one like row."""
    Path(name).write_text(content, encoding="utf-8")
    lines = content.splitlines()
    head = lines[:2] if name.endswith(".csv") else lines[:1]
    Path(f"held-{name}").write_text("\n".join(head) + "\n", encoding="utf-8")
    source = files(name, validation=f"held-{name}", split=SHARES | {"test": 0}, **changes)
    return [{role: row[role] for role in row if role != "row"} for row in source.load(roles)["train"]]


ROLE_CASES: dict[str, tuple[str, tuple[str, ...], dict[str, Any], list[dict[str, Any]]]] = {
    "pairs": (
        "text,text_pair,score\na,b,0.5\nc,,1\nd,e,\n",
        ("text", "text_pair", "score"), {},
        [{"text": "a", "text_pair": "b", "score": 0.5}],
    ),
    "triplets": (
        "text,positive,negative\na,b,c\n",
        ("text", "positive", "negative"), {},
        [{"text": "a", "positive": "b", "negative": "c"}],
    ),
    "labels": (
        "text,labels\na,x|y\nb,\nc,y\n",
        ("text", "labels"), {},
        [{"text": "a", "labels": ["x", "y"]}, {"text": "b", "labels": []}, {"text": "c", "labels": ["y"]}],
    ),
    "values": (
        "text,lat,lon\na,1.5,-2\nb,3,x\n".replace(",x", ","),
        ("text", "value"), {"columns": COLUMNS | {"value": ["lat", "lon"]}},
        [{"text": "a", "value": [1.5, -2.0]}],
    ),
    "words": (
        "词,tags\n我 爱 北京,O O B-LOC\n",
        ("words", "tags"), {"list_separator": " ", "columns": COLUMNS | {"words": "词"}},
        [{"words": ["我", "爱", "北京"], "tags": ["O", "O", "B-LOC"]}],
    ),
    "features": (
        "age,city,label,note\n30,Rom,a,x\n,,b,\n40.5,007,a,y\n",
        ("features", "label"), {"columns": COLUMNS | {"features": ["age", "city"]}},
        [
            {"features": {"age": 30.0, "city": "Rom"}, "label": "a"},
            {"features": {"age": None, "city": None}, "label": "b"},
            {"features": {"age": 40.5, "city": "007"}, "label": "a"},
        ],
    ),
    "other features": (
        "age,value,label\n30,1,a\n,2,b\n",
        ("features", "value"), {},
        [
            {"features": {"age": 30.0, "label": "a"}, "value": [1.0]},
            {"features": {"age": None, "label": "b"}, "value": [2.0]},
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROLE_CASES)
def test_columns_play_the_roles_asked_for(case: str) -> None:
    content, roles, changes, rows = ROLE_CASES[case]

    assert loaded(content, roles, **changes) == rows


def test_lists_and_numbers_of_json_are_taken_as_they_are() -> None:
    content = json_lines(
        [
            {"words": ["a|b", "c"], "tags": ["O", "B x"], "labels": [], "value": [1, 2.5], "size": 3, "code": "007"},
            {"words": ["d"], "tags": ["O"], "labels": ["y", "x"], "value": [0, 0], "size": None, "code": None},
        ]
    )
    roles = ("words", "tags", "labels", "value", "features")

    assert loaded(content, roles, "train.jsonl") == [
        {
            "words": ["a|b", "c"], "tags": ["O", "B x"], "labels": [], "value": [1.0, 2.5],
            "features": {"size": 3.0, "code": 7.0},
        },
        {
            "words": ["d"], "tags": ["O"], "labels": ["y", "x"], "value": [0.0, 0.0],
            "features": {"size": None, "code": None},
        },
    ]  # fmt: skip


def test_what_is_asked_for_has_a_cache_of_its_own() -> None:
    Path("train.csv").write_text("text,label,labels\n" + "".join(f"text {n},{n % 2},x|y\n" for n in range(100)))
    source = files()

    first, second = source.load(BOTH), source.load(("text", "labels"))

    assert first["train"].column_names == ["text", "label", "row"]
    assert second["train"].column_names == ["text", "labels", "row"]
    assert first["train"]["row"][:] == second["train"]["row"][:]
    assert len(os.listdir("cache/trainer_files")) == 2
    assert [source.describe_role(role) for role in ("text", "labels", "features")] == [
        "data.text=text", "data.columns.labels=labels", "data.columns.features=null",
    ]  # fmt: skip


def test_a_role_without_a_column_is_absent() -> None:
    write_many("train.csv", range(100))

    assert files(columns=COLUMNS | {"labels": None}).load(("text", "labels"))["train"].column_names == ["text", "row"]
    with pytest.raises(
        DataError, match=r"^train\.csv: has no column 'labels'\. .*by data\.text and data\.columns\.labels"
    ):
        files().load(("text", "labels"))


@pytest.mark.parametrize(
    ("header", "row", "roles"),
    [
        ("text,text_pair,label", "text {0},pair {0},{1}", ("text", "text_pair", "label")),
        ("words,tags,label", "a|{0},O|{1},{1}", ("words", "tags")),
        ("a,b,label", "{0},x{0},{1}", ("features", "label")),
    ],
)
def test_shares_follow_the_inputs_and_not_what_is_learnt(header: str, row: str, roles: tuple[str, ...]) -> None:
    lines = [row.format(n % 100, n % 3) for n in range(300)]
    Path("train.csv").write_text("\n".join([header, *lines]) + "\n")

    splits = files().load(roles)

    inputs = [role for role in roles if role not in ("label", "tags")]
    found = [{repr([one[role] for role in inputs]) for one in rows} for rows in splits.values()]
    assert sum(map(len, found)) == len(set.union(*found)) == 100
    assert sum(map(len, splits.values())) == 300


def test_images_are_found_beside_their_file_wherever_it_lies() -> None:
    Path("data").mkdir()
    for number in range(100):
        Path(f"data/{number}.png").write_bytes(b"%d" % (number % 50))
    Path("data/train.csv").write_text("image,label\n" + "".join(f"{n}.png,{n % 2}\n" for n in range(100)))
    source = files("data/train.csv")

    splits = source.load(("image", "label"))

    assert sum(map(len, splits.values())) == 100
    contents = [{Path(image["path"]).read_bytes() for image in rows["image"]} for rows in splits.values()]
    assert sum(map(len, contents)) == len(set.union(*contents)) == 50
    Path("data").rename("moved")
    moved = files("moved/train.csv")
    assert moved.fingerprint == source.fingerprint
    assert Path(moved.load(("image", "label"))["train"][0]["image"]["path"]).parent == Path("moved").absolute()
    Path("moved/7.png").write_bytes(b"other")
    assert files("moved/train.csv").fingerprint != source.fingerprint
    Path("moved/7.png").unlink()
    with pytest.raises(DataError, match=r"^moved/train\.csv, row 8, column 'image': the image cannot be read: No such"):
        files("moved/train.csv").load(("image", "label"))


@pytest.mark.parametrize(
    ("held", "message"),
    [
        (
            "a,b,label\nx,1,c\n",
            "held.csv, row 1, column 'a': expected a number, got 'x'; every training row has",
        ),
        (
            "a,label\n1,c\n",
            "held.csv: has no column 'b'. Its columns are 'a', 'label'; name them by data.columns.features and",
        ),
    ],
)
def test_another_split_has_the_features_of_training(held: str, message: str) -> None:
    Path("train.csv").write_text("a,b,label\n1,x,c\n,y,d\n")
    Path("held.csv").write_text(held)

    with pytest.raises(DataError, match="^" + re.escape(message)):
        files(validation="held.csv", split=SHARES | {"test": 0}).load(("features", "label"))


UNUSABLE: dict[str, tuple[str, bytes, str]] = {
    "header": ("a.csv", b"text,label\n", "a.csv: has no rows."),
    "blank": ("a.jsonl", b"\n\n", "a.jsonl: has no rows."),
    "nothing": ("a.json", b"[]", "a.json: has no rows."),
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
    "suffix": ("a.xlsx", b"PK", "a.xlsx: unsupported file format. Supported formats: .arrow, .csv, .csv.gz,"),
}


@pytest.mark.parametrize("case", UNUSABLE)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_what_cannot_be_used_is_one_message_with_its_place(case: str, split: str) -> None:
    name, content, message = UNUSABLE[case]
    Path(name).write_bytes(content)
    write_many("good.csv", range(100))
    source = files(**{"train": "good.csv"} | {split: name})

    with pytest.raises(DataError, match="^.*" + re.escape(message)) as caught:
        source.load(BOTH)

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
            "data.train: expected a file, not a folder, got 'data'. Name the files in it: data/*.csv.",
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

    assert len(files("a[1].csv").load(BOTH)["train"]) > 60


def test_one_file_in_two_splits_is_refused(tmp_path: Path) -> None:
    write_many("train.csv", range(100))

    with pytest.raises(DataError, match=r"^data\.test: names a file of data\.train too, got "):
        files(test=str(tmp_path / "train.csv")).load(BOTH)


def test_a_split_without_rows_is_one_message() -> None:
    write_many("train.csv", range(3))

    with pytest.raises(
        DataError, match=r"^data\.validation: none of the 3 rows of data\.train .* data\.split, or name files"
    ):
        files().load(BOTH)


def test_a_cache_that_cannot_be_written_is_one_message() -> None:
    write_many("train.csv", range(100))
    Path("cache").touch()

    with pytest.raises(DataError, match=r"^data\.cache_dir: cannot store the splits: .*, got 'cache/trainer_files'\."):
        files().load(BOTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": "text"}, "label: must differ from data.text, got 'text'."),
        ({"split": {"validation": 0.1}}, "split: must have the keys validation and test, got {'validation': 0.1}."),
        ({"split": SHARES | {"dev": 0.1}}, "split: must have the keys validation and test, got "),
        ({"split": SHARES | {"test": 1}}, "split.test: must be in [0, 1), got 1."),
        ({"split": SHARES | {"test": -0.1}}, "split.test: must be in [0, 1), got -0.1."),
        ({"split": {"validation": 0.5, "test": 0.5}}, "split: leaves no rows for training, got "),
        ({"split": {"validation": 0, "test": 0.5}}, "split.validation: a run needs a validation split, got 0."),
        ({"separator": "||"}, "separator: must be one character or null, got '||'."),
        ({"quote": ""}, "quote: must be one character or null, got ''."),
        ({"list_separator": ""}, "list_separator: must be one or more characters, got ''."),
        ({"columns": {}}, "columns: must have the key text_pair, got {}."),
        ({"columns": COLUMNS | {"text": "a"}}, "columns.text: unknown role, got 'a'."),
    ],
)
def test_parameters_out_of_range_are_refused_before_any_file_is_opened(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match="^" + re.escape(message)):
        files("nowhere.csv", **changes)


def test_no_file_at_all_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^train: names no file, got \[\]\."):
        files([]).load(BOTH)
