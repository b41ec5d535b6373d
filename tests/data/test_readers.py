"""Every format gives every value as it stands, and what is broken is one message with its place."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from trainer.data.readers import format_suffix, format_suffixes, read_records, read_records_or_errors
from trainer.errors import DataError

ROWS = [
    ("None", "1"),
    ("NA", "2"),
    ("007", "1"),
    ("", "2"),
    ("一句中文,带逗号", "正面"),
    ('say "hi", twice\nand again', "负面"),
    (" kept  as it is ", "null"),
    ("2020-01-01", "1"),
]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(name: str, quote: str | None = '"') -> list[tuple[Any, ...]]:
    keys = "data.text and data.label"
    found = read_records(Path(name), ["text", "label"], separator=None, quote=quote, named_by=keys)
    return [tuple(values) for values in found]


def cells(values: list[tuple[str, str]], separator: str = ",") -> str:
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in ("text", "label")]]
    quoted += [['"' + cell.replace('"', '""') + '"' for cell in row] for row in values]
    return "\n".join(separator.join(row) for row in quoted) + "\n"


def table(values: list[tuple[str, str]]) -> pa.Table:
    return pa.table({"id": range(len(values)), "label": [row[1] for row in values], "text": [row[0] for row in values]})


def objects(values: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in values]


def write_stream(path: str) -> None:
    with pa.ipc.new_stream(path, table(ROWS).schema) as writer:
        for start in range(0, len(ROWS), 3):
            writer.write_table(table(ROWS[start : start + 3]))


def json_lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


WRITERS: dict[str, Callable[[str], object]] = {
    "a.csv": lambda path: Path(path).write_text(cells(ROWS), encoding="utf-8"),
    "bom.csv": lambda path: Path(path).write_text(cells(ROWS), encoding="utf-8-sig"),
    "a.TSV": lambda path: Path(path).write_text(cells(ROWS, "\t"), encoding="utf-8"),
    "a.csv.gz": lambda path: Path(path).write_bytes(gzip.compress(cells(ROWS).encode(), mtime=0)),
    "a.jsonl": lambda path: Path(path).write_text("\n" + json_lines(objects(ROWS)), encoding="utf-8-sig"),
    "a.v2.jsonl.gz": lambda path: Path(path).write_bytes(gzip.compress(json_lines(objects(ROWS)).encode(), mtime=0)),
    "list.json": lambda path: Path(path).write_text(json.dumps(objects(ROWS), indent=1)),
    "lines.json": lambda path: Path(path).write_text(json_lines(objects(ROWS)), encoding="utf-8"),
    "a.parquet": lambda path: parquet.write_table(table(ROWS), path, row_group_size=3),
    "a.feather": lambda path: feather.write_feather(table(ROWS), path, chunksize=3),
    "stream.arrow": write_stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_every_value_as_it_stands(name: str) -> None:
    WRITERS[name](name)

    assert read(name) == ROWS


def test_every_suffix_has_its_case() -> None:
    assert {format_suffix(Path(name)) for name in WRITERS} | {".tsv.gz", ".json.gz"} == set(format_suffixes())
    assert format_suffix(Path("a.gz")) is None


def test_a_cell_may_be_long() -> None:
    Path("a.csv").write_text("text,label\n" + "a" * 200_000 + ",b\n")

    assert len(read("a.csv")[0][0]) == 200_000


def test_a_key_that_a_later_object_lacks_is_a_null() -> None:
    Path("a.jsonl").write_text(json_lines([{"text": "a", "label": 1}, {"text": "b"}]))

    assert read("a.jsonl") == [("a", 1), ("b", None)]


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "column": (
        "a.csv",
        b"texts,label\na,b\n",
        "a.csv: has no column 'text'. Did you mean texts? Its columns are 'texts', 'label';",
    ),
    "columns": (
        "a.csv",
        b"x,y\na,b\n",
        "a.csv: has no column 'text' and no column 'label'. Its columns are 'x', 'y'; name them by data.text",
    ),
    "columns misspelt": (
        "a.jsonl",
        b'{"texts": "a", "lable": "b"}',
        "a.jsonl: has no column 'text' and no column 'label'. Did you mean texts and lable? Its columns are 'texts'",
    ),
    "twice": ("a.csv", b"text,text,label\na,b,c\n", "a.csv: has 2 columns 'text'."),
    "separator": ("a.csv", b"text;label\na;b\n", "and their separator in data.separator."),
    "empty": ("a.csv", b"", "a.csv: is empty."),
    "encoding": (
        "a.csv",
        "text,label\na,b\n你,b\n".encode("gb18030"),
        "a.csv, line 3: byte 0xc4 at offset 15 of the file is not UTF-8.",
    ),
    "utf-16": (
        "a.csv",
        "text,label\n".encode("utf-16"),
        "a.csv, line 1: byte 0xff at offset 0 of the file is not UTF-8.",
    ),
    "ragged": (
        "a.csv",
        b'text,label\n"two\nlines",b\na,b,c\n',
        "a.csv, line 4: expected 2 cells as in the header, got 3. Quote cells that contain ',' or a line end.",
    ),
    "short": ("a.tsv", b"text\tlabel\na\n", "a.tsv, line 2: expected 2 cells as in the header, got 1."),
    "quote": ("a.csv", b'text,label\na,b\n"c,d\ne,f\n', "a.csv, line 3: broken CSV: unexpected end of data."),
    "inner": ("a.tsv", b'text\tlabel\n"a" b\tc\n', "a.tsv, line 2: broken CSV: '\t' expected after '\"'."),
    "json": (
        "a.jsonl",
        b'{"text": "a", "label": "b"}\n\n{"text": "a", "label": }\n',
        "a.jsonl, line 3: broken JSON at column 24: Expecting value.",
    ),
    "json list": (
        "a.json",
        b'[\n{"text": "a",\n\n "label": }]',
        "a.json, line 4: broken JSON at column 11: Expecting value.",
    ),
    "json item": ("a.json", b'[{"text": "a", "label": "b"}, 3]', "a.json, item 2: expected an object with the columns"),
    "json value": (
        "a.jsonl",
        b'"text"\n',
        "a.jsonl, line 1: expected an object with the columns text, label, got 'str'.",
    ),
    "json column": (
        "a.json",
        b'{"data": [{"text": "a"}]}',
        "a.json: has no column 'text' and no column 'label'. Its columns are 'data';",
    ),
    "parquet": ("a.parquet", b"PAR1 this is no Parquet file PAR1", "a.parquet: cannot be read: "),
    "arrow": ("a.arrow", b"ARROW1 this is no Arrow file", "a.arrow: cannot be read: "),
    "stream": ("a.arrow", b"neither is this a stream", "a.arrow: cannot be read: "),
    "gzip": ("a.csv.gz", gzip.compress(b"text,label\na,b\n" * 99, mtime=0)[:-20], "a.csv.gz: cannot be read: "),
    "no gzip": ("a.csv.gz", b"text,label\na,b\n", "a.csv.gz: cannot be read: Not a gzipped file"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_one_message_with_its_place(case: str) -> None:
    name, content, message = BROKEN[case]
    Path(name).write_bytes(content)

    with pytest.raises(DataError, match="^.*" + re.escape(message)) as caught:
        read(name)

    assert len(caught.value.messages) == 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "schema"), [("a.parquet", ["text"]), ("a.feather", ["label", "text2"])])
def test_a_column_missing_from_a_table_is_one_message(name: str, schema: list[str]) -> None:
    write = parquet.write_table if name == "a.parquet" else feather.write_feather
    write(pa.table({column: ["a"] for column in schema}), name)

    with pytest.raises(DataError, match=rf"^{name}: has no column '(label|text)'\. .*Its columns are '{schema[0]}'"):
        read(name)


def test_damage_inside_a_parquet_file_is_one_message() -> None:
    parquet.write_table(table([(f"text {n}", "a") for n in range(1000)]), "a.parquet", compression="zstd")
    content = bytearray(Path("a.parquet").read_bytes())
    content[3000:3400] = bytes(400)
    Path("a.parquet").write_bytes(content)

    with pytest.raises(DataError, match=r"^a\.parquet: cannot be read: "):
        read("a.parquet")


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        (
            "a.csv",
            b'text,label\none,x\ntwo\n"thr"ee,y\nf\xffur,y\nfive,y\n',
            ["one", "line 3", "line 4", "line 5", "five"],
        ),
        (
            "a.jsonl",
            b'{"text": "one"}\n{"text\n[1]\n{"te": "\xff"}\n{}\n',
            ["one", "line 2", "line 3", "line 4", "line 5"],
        ),
        ("b.jsonl", b'nothing\n{"text": "one"}\n', ["line 1", "one"]),
        ("a.json", b'[{"text": "one"}, 2, {"text": "three"}]', ["one", "item 2", "three"]),
    ],
)
def test_a_broken_record_is_a_fault_of_its_own(tmp_path: Path, name: str, content: bytes, expected: list[str]) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    found = list(read_records_or_errors(file, ["text"], separator=None, quote='"', named_by="data.text"))

    assert len(found) == len(expected)
    for one, wanted in zip(found, expected, strict=True):
        if isinstance(one, DataError):
            assert str(one).startswith(f"{file}, {wanted}: ")
        else:
            assert one[0] == wanted
    with pytest.raises(DataError, match=str(expected[1] if expected[0] == "one" else expected[0])):
        list(read_records(file, ["text"], separator=None, quote='"', named_by="data.text"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"te\xffxt\none\n", "line 1: byte 0xff"),
        ("a.csv", b'"te"xt\none\n', "line 1: broken CSV"),
        ("a.csv", b"words\none\n", "has no column 'text'"),
        ("a.json", b"[1,", "broken JSON"),
    ],
)
def test_what_is_broken_as_a_whole_is_no_record(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=message):
        list(read_records_or_errors(tmp_path / name, ["text"], separator=None, quote='"', named_by="data.text"))
