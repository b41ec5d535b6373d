import inspect
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from trainer.config.groups import Groups, own_folder
from trainer.data.files import Files
from trainer.data.splits import assign_split
from trainer.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("working_folder")

SHARES = {"validation": 0.1, "test": 0.1}
OWN_VALIDATION = SHARES | {"test": 0}
ROLES = ("text_pair", "positive", "negative", "labels", "value", "score", "words", "tags", "spans", "image")
COLUMNS: dict[str, Any] = {role: role for role in ROLES} | {"features": None}
TEXT_AND_LABEL = ("text", "label")


def files(train: str | list[str] = "train.csv", **changes: Any) -> Files:
    arguments = {
        "validation": None,
        "test": None,
        "text": "text",
        "label": "label",
        "columns": COLUMNS,
        "split": SHARES,
    }
    options = {"list_separator": "|", "separator": None, "quote": '"', "cache_dir": "cache"}
    return Files(train, **arguments | options | changes)


def json_lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def write_numbers(name: str, numbers: range) -> None:
    Path(name).write_text("text,label\n" + "".join(f"number {n},{n % 2}\n" for n in numbers))


@pytest.mark.parametrize("value", [1, True, 1.0])
def test_numeric_labels_become_strings(value: float) -> None:
    Path("other.csv").write_text("text,label\na,b\n")
    Path("a.jsonl").write_text(json_lines([{"text": "x", "label": value}, {"text": 5, "label": None}]))
    parquet.write_table(pa.table({"text": ["x", "5"], "label": [value, None]}), "a.parquet")

    for name in ("a.jsonl", "a.parquet"):
        train = files(name, validation="other.csv", split=OWN_VALIDATION).load(TEXT_AND_LABEL)["train"]
        assert train.to_dict() == {"text": ["x"], "label": ["1"], "row": [1]}


def test_each_split_has_files_of_its_own() -> None:
    Path("a.csv").write_text("text,label\na,b\nc,d\n")
    Path("b.jsonl").write_text(json_lines([{"text": "你好", "label": "正"}]), encoding="utf-8")
    Path("c.csv").write_text("label,text,more\nb,a,c\n")
    Path("b.csv").write_text("text,label\na,b\n")

    source = files(["b.jsonl", "a.csv"], validation="c.csv", test="b.csv")
    splits = source.load(TEXT_AND_LABEL)

    train = splits["train"]
    assert {name: feature.dtype for name, feature in train.features.items()} == {
        "text": "string", "label": "string", "row": "int64",
    }  # fmt: skip
    assert list(zip(train["text"], train["label"], strict=True)) == [("你好", "正"), ("a", "b"), ("c", "d")]
    rows = [source.describe_row("train", row) for row in train["row"]]
    assert rows == ["b.jsonl, row 1", "a.csv, row 1", "a.csv, row 2"]
    assert splits["test"].to_dict() == splits["validation"].to_dict() == {"text": ["a"], "label": ["b"], "row": [1]}
    assert source.describe_row("test", 1) == "b.csv, row 1"


def test_columns_may_have_any_name_and_separator() -> None:
    Path("train.csv").write_text("编号;标签;文本\n1;正;你好\n2;负;再见\n", encoding="utf-8")
    Path("other.csv").write_text("文本;标签\n好;正\n", encoding="utf-8")

    source = files(text="文本", label="标签", validation="other.csv", split=OWN_VALIDATION, separator=";")

    assert source.load(TEXT_AND_LABEL)["train"]["text"][:] == ["你好", "再见"]
    assert list(source.load(TEXT_AND_LABEL)) == ["train", "validation"]
    assert source.describe_role("label") == "data.label=标签"


def test_quotes_may_be_ordinary_characters() -> None:
    Path("train.tsv").write_text('text\tlabel\n"Hello" he said\tx\nan "open one\ty\n')
    Path("other.tsv").write_text("text\tlabel\na\tx\n")

    splits = files("train.tsv", validation="other.tsv", split=OWN_VALIDATION, quote=None).load(TEXT_AND_LABEL)

    assert splits["train"]["text"][:] == ['"Hello" he said', 'an "open one']


def test_shares_depend_on_the_text_and_rows_know_their_file() -> None:
    Path("data").mkdir()
    write_numbers("data/b.csv", range(1000, 2000))
    write_numbers("data/a.csv", range(1200))
    source = files("data/*.csv")

    splits = source.load(TEXT_AND_LABEL)

    assert sum(map(len, splits.values())) == 2200
    assert len(splits["validation"]) == pytest.approx(220, rel=0.2)
    lines = {path.name: path.read_text().splitlines() for path in Path("data").iterdir()}
    for split, rows in splits.items():
        for text, row in zip(rows["text"], rows["row"], strict=True):
            name, number = source.describe_row(split, row).split(", row ")
            assert lines[Path(name).name][int(number)].startswith(f"{text},")
            assert assign_split(text, SHARES) == split


def test_order_of_rows_does_not_change_their_split() -> None:
    write_numbers("a.csv", range(300))
    write_numbers("b.csv", range(299, -1, -1))

    forward, backward = files("a.csv").load(TEXT_AND_LABEL), files("b.csv").load(TEXT_AND_LABEL)

    assert {split: sorted(rows["text"]) for split, rows in forward.items()} == {
        split: sorted(rows["text"]) for split, rows in backward.items()
    }


def test_split_without_files_takes_its_share_from_training_only() -> None:
    write_numbers("train.csv", range(300))
    write_numbers("held.csv", range(20))

    splits = files(validation="held.csv").load(TEXT_AND_LABEL)

    assert [len(splits[split]) for split in ("train", "validation")] == [300 - len(splits["test"]), 20]
    assert {assign_split(text, {"test": 0.1}) for text in splits["test"]["text"]} == {"test"}


def test_incomplete_rows_are_dropped_with_one_warning_per_load(caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": None, "label": "x"}, {"text": "b"}, {"text": "c", "label": "y"}]
    Path("a.jsonl").write_text(json_lines([{"text": "a", "label": "x"}]))
    Path("b.jsonl").write_text('{"text": "b", "label": NaN}\n' + json_lines(rows))
    Path("held.csv").write_text("text,label\n,x\na,\n  ,y\nd,x\n")
    source = files(["a.jsonl", "b.jsonl"], validation="held.csv", split=OWN_VALIDATION)

    for _ in range(2):
        caplog.clear()
        splits = source.load(TEXT_AND_LABEL)
        assert caplog.record_tuples == [
            ("trainer.data.splits", logging.WARNING, f"data.{split}: dropped 3 rows without a text or a label; {first}")
            for split, first in [
                ("train", "the first is b.jsonl, row 1"),
                ("validation", "the first is held.csv, row 1"),
            ]
        ]
    assert splits["train"]["text"][:] == ["a", "c"]
    rows_left = [source.describe_row("train", row) for row in splits["train"]["row"]]
    assert rows_left == ["a.jsonl, row 1", "b.jsonl, row 4"]
    assert splits["validation"]["text"][:] == ["d"]


def test_data_stays_on_disk(tmp_path: Path) -> None:
    long = "a text of some length " * 20
    Path("train.csv").write_text("text,label\n" + "".join(f"{long} {n},{n % 2}\n" for n in range(30_000)))
    before = pa.total_allocated_bytes()

    train = files().load(TEXT_AND_LABEL)["train"]

    assert Path(train.cache_files[0]["filename"]).is_relative_to(tmp_path / "cache")
    assert train.data.nbytes > 10_000_000
    assert len(train.data.column("text").chunks) > 1  # written in batches
    assert pa.total_allocated_bytes() - before < 1_000_000
    (folder,) = os.listdir("cache/trainer_files")
    assert folder.startswith(f"{files().fingerprint}-")


def test_fingerprint_depends_on_content_and_arguments_but_not_on_the_path() -> None:
    write_numbers("train.csv", range(100))
    write_numbers("moved.csv", range(100))
    Path("moved.jsonl").write_bytes(Path("moved.csv").read_bytes())
    fingerprint = files().fingerprint

    assert files("moved.csv").fingerprint == files("*ved.csv").fingerprint == fingerprint
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
    assert len({fingerprint, *(other.fingerprint for other in others)}) == 9
    write_numbers("train.csv", range(99))
    assert files().fingerprint != fingerprint


def test_a_role_that_earlier_runs_lack_does_not_change_the_fingerprint() -> None:
    write_numbers("train.csv", range(3))
    earlier = {role: name for role, name in COLUMNS.items() if role != "spans"}
    same = [files(columns=columns).fingerprint for columns in (earlier, COLUMNS, COLUMNS | {"spans": None})]
    assert len({*same}) == 1
    assert files(columns=COLUMNS | {"spans": "entities"}).fingerprint not in same


def test_spans_are_read_from_json_lines_and_csv() -> None:
    spans = [{"start": 0, "end": 4, "label": "PER"}, {"start": 0, "end": 1, "label": "LETTER"}]
    rows = [{"text": "Anna", "spans": spans}, {"text": "Ben", "spans": []}, {"text": "Eve"}]
    Path("a.jsonl").write_text(json_lines(rows))
    Path("a.csv").write_text(f'text,spans\nAnna,"{json.dumps(spans).replace(chr(34), 2 * chr(34))}"\nBen,[]\nEve,\n')
    Path("other.jsonl").write_text(json_lines([{"text": "Bea", "spans": [{"start": 0, "end": 3, "label": "PER"}]}]))
    for name in ("a.jsonl", "a.csv"):
        splits = files(name, validation="other.jsonl", split=OWN_VALIDATION).load(("text", "spans"))
        assert splits["train"][:]["text"] == ["Anna", "Ben"]
        assert splits["train"][:]["spans"] == [spans, []]


def test_order_of_keys_does_not_change_the_fingerprint() -> None:
    write_numbers("train.csv", range(100))
    columns = dict(reversed(COLUMNS.items()))
    assert files(columns=columns, split=dict(reversed(SHARES.items()))).fingerprint == files().fingerprint
    usual = Groups((own_folder(),)).content("data", "files") | {"train": "train.csv"}
    arguments = {key: usual[key] for key in inspect.signature(Files).parameters}
    # The value in runs of earlier versions, which must still be accepted.
    assert Files(**arguments).fingerprint == "569cb745d09f2ab1786db60a0a51a411"


def load_rows(content: str, roles: tuple[str, ...], name: str = "train.csv", **changes: Any) -> list[dict[str, Any]]:
    """Return the rows of a training file next to a validation file with its first row."""
    Path(name).write_text(content, encoding="utf-8")
    lines = content.splitlines()
    head = lines[:2] if name.endswith(".csv") else lines[:1]
    Path(f"held-{name}").write_text("\n".join(head) + "\n", encoding="utf-8")
    source = files(name, validation=f"held-{name}", split=OWN_VALIDATION, **changes)
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
        "text,lat,lon\na,1.5,-2\nb,3,\n",
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
    "all other columns": (
        "age,value,label\n30,1,a\n,2,b\n",
        ("features", "value"), {},
        [
            {"features": {"age": 30.0, "label": "a"}, "value": [1.0]},
            {"features": {"age": None, "label": "b"}, "value": [2.0]},
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ROLE_CASES)
def test_columns_have_the_requested_roles(case: str) -> None:
    content, roles, changes, rows = ROLE_CASES[case]

    assert load_rows(content, roles, **changes) == rows


def test_json_lists_and_numbers_keep_their_values() -> None:
    content = json_lines(
        [
            {"words": ["a|b", "c"], "tags": ["O", "B x"], "labels": [], "value": [1, 2.5], "size": 3, "code": "007"},
            {"words": ["d"], "tags": ["O"], "labels": ["y", "x"], "value": [0, 0], "size": None, "code": None},
        ]
    )
    roles = ("words", "tags", "labels", "value", "features")

    assert load_rows(content, roles, "train.jsonl") == [
        {
            "words": ["a|b", "c"], "tags": ["O", "B x"], "labels": [], "value": [1.0, 2.5],
            "features": {"size": 3.0, "code": 7.0},
        },
        {
            "words": ["d"], "tags": ["O"], "labels": ["y", "x"], "value": [0.0, 0.0],
            "features": {"size": None, "code": None},
        },
    ]  # fmt: skip


def test_each_set_of_roles_has_a_cache_of_its_own() -> None:
    Path("train.csv").write_text("text,label,labels\n" + "".join(f"text {n},{n % 2},x|y\n" for n in range(100)))
    source = files()

    first, second = source.load(TEXT_AND_LABEL), source.load(("text", "labels"))

    assert first["train"].column_names == ["text", "label", "row"]
    assert second["train"].column_names == ["text", "labels", "row"]
    assert first["train"]["row"][:] == second["train"]["row"][:]
    assert len(os.listdir("cache/trainer_files")) == 2
    assert [source.describe_role(role) for role in ("text", "labels", "features")] == [
        "data.text=text", "data.columns.labels=labels", "data.columns.features=null",
    ]  # fmt: skip


def test_role_without_a_column_is_absent() -> None:
    write_numbers("train.csv", range(100))

    train = files(columns=COLUMNS | {"labels": None}).load(("text", "labels"))["train"]
    assert train.column_names == ["text", "row"]
    message = r"^train\.csv: has no column 'labels'\. .*set data\.text and data\.columns\.labels"
    with pytest.raises(DataError, match=message):
        files().load(("text", "labels"))


@pytest.mark.parametrize(
    ("header", "row", "roles"),
    [
        ("text,text_pair,label", "text {0},pair {0},{1}", ("text", "text_pair", "label")),
        ("words,tags,label", "a|{0},O|{1},{1}", ("words", "tags")),
        ("a,b,label", "{0},x{0},{1}", ("features", "label")),
    ],
)
def test_shares_depend_on_the_inputs_and_not_on_targets(header: str, row: str, roles: tuple[str, ...]) -> None:
    lines = [row.format(n % 100, n % 3) for n in range(300)]
    Path("train.csv").write_text("\n".join([header, *lines]) + "\n")

    splits = files().load(roles)

    input_roles = [role for role in roles if role not in ("label", "tags")]
    inputs = [{repr([one[role] for role in input_roles]) for one in rows} for rows in splits.values()]
    assert sum(map(len, inputs)) == len(set.union(*inputs)) == 100
    assert sum(map(len, splits.values())) == 300


def test_images_are_found_next_to_their_file_wherever_it_is() -> None:
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
    ("validation", "message"),
    [
        ("a,b,label\nx,1,c\n", "held.csv, row 1, column 'a': expected a number, got 'x'; every training row has"),
        ("a,label\n1,c\n", "held.csv: has no column 'b'. Its columns are 'a', 'label'; set data.columns.f"),
    ],
)
def test_other_splits_must_have_the_features_of_training(validation: str, message: str) -> None:
    Path("train.csv").write_text("a,b,label\n1,x,c\n,y,d\n")
    Path("held.csv").write_text(validation)

    with pytest.raises(DataError, match="^" + re.escape(message)):
        files(validation="held.csv", split=OWN_VALIDATION).load(("features", "label"))


def test_single_split_is_read_without_the_files_of_the_others() -> None:
    Path("train.csv").write_text("a,b,label\n1,x,c\n,y,d\n")
    Path("held.csv").write_text("a,b,label\n2,7,c\n")
    source = files(validation="held.csv", split=OWN_VALIDATION)
    expected = source.load(("features", "label"))["validation"].to_dict()
    assert source.for_split("test", {}) is files().for_split("train", {}) is None
    Path("train.csv").unlink()

    single = source.for_split("validation", {"a": True, "b": False})

    assert single is not None
    splits = single.load(("features", "label"))
    assert {split: rows.to_dict() for split, rows in splits.items()} == {"validation": expected}
    assert single.fingerprint != source.fingerprint


UNUSABLE: dict[str, tuple[str, bytes, str]] = {
    "header only": ("a.csv", b"text,label\n", "a.csv: has no rows."),
    "blank lines": ("a.jsonl", b"\n\n", "a.jsonl: has no rows."),
    "list cell": (
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
def test_unusable_file_is_one_message_and_leaves_no_cache(case: str) -> None:
    name, content, message = UNUSABLE[case]
    Path(name).write_bytes(content)
    write_numbers("good.csv", range(100))

    for split in ("train", "validation"):
        with pytest.raises(DataError, match="^" + re.escape(message)) as caught:
            files(**{"train": "good.csv"} | {split: name}).load(TEXT_AND_LABEL)

        assert len(caught.value.messages) == 1
        assert "\n" not in str(caught.value)
        assert not Path("cache/trainer_files").exists() or not os.listdir("cache/trainer_files")


def test_split_without_rows_is_one_message() -> None:
    write_numbers("train.csv", range(3))

    with pytest.raises(DataError, match=r"^data\.split: training has 3 rows, and none .*, or name files"):
        files().load(TEXT_AND_LABEL)


def test_cache_folder_that_cannot_be_written_is_one_message() -> None:
    write_numbers("train.csv", range(100))
    Path("cache").touch()

    with pytest.raises(DataError, match=r"^cache/trainer_files/\S+: cannot be written: .*data\.cache_dir\.$"):
        files().load(TEXT_AND_LABEL)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"train": []}, "train"),
        ({"validation": ["a.csv", ""]}, "validation"),
        ({"label": "text"}, "label"),
        ({"text": ["a", "label"]}, "label"),
        ({"text": ["a", "a"]}, "text"),
        ({"split": {"validation": 0.1}}, "split"),
        ({"split": SHARES | {"dev": 0.1}}, "split"),
        ({"split": SHARES | {"test": 1}}, "split.test"),
        ({"split": SHARES | {"test": -0.1}}, "split.test"),
        ({"split": {"validation": 0.5, "test": 0.5}}, "split"),
        ({"split": {"validation": 0, "test": 0.5}}, "split.validation"),
        ({"separator": "||"}, "separator"),
        ({"separator": "\n"}, "separator"),
        ({"quote": ""}, "quote"),
        ({"list_separator": ""}, "list_separator"),
        ({"list_separator": "a\n"}, "list_separator"),
        ({"columns": COLUMNS | {"text": "a"}}, "columns.text"),
        ({"columns": COLUMNS | {"words": ["a", "b"]}}, "columns.*"),
        ({"columns": COLUMNS | {"value": ["a", "a"]}}, "columns.value"),
        ({"columns": COLUMNS | {"features": ["a", "a"]}}, "columns.features"),
        ({"columns": COLUMNS | {"features": []}}, "columns.features"),
    ],
)
def test_arguments_out_of_range_are_rejected_before_any_file_is_opened(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError) as caught:
        files(**{"train": "nowhere.csv"} | changes)

    assert [message.partition(": ")[0] for message in caught.value.messages] == [key]


def test_shares_of_splits_with_files_of_their_own_do_not_count() -> None:
    files(test="b.csv", split={"validation": 0.5, "test": 0.5})
    files(validation="b.csv", split={"validation": 0, "test": 0.5})
