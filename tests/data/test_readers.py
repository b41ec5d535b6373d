import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import feather, parquet

from trainer.data import line_reader, readers
from trainer.data.readers import (
    column_names,
    format_suffix,
    format_suffixes,
    read_records,
    read_records_or_errors,
)
from trainer.errors import DataError
from trainer.files import untrusted
from trainer.files.untrusted import Limits

pytestmark = pytest.mark.usefixtures("working_folder")

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


def read(name: str) -> list[tuple[Any, ...]]:
    remedy = "set data.text and data.label"
    records = read_records(Path(name), ["text", "label"], separator=None, quote='"', column_remedy=remedy)
    return [tuple(values) for values in records]


def csv_text(rows: list[tuple[str, str]], separator: str = ",") -> str:
    quoted = [['"' + cell.replace('"', '""') + '"' for cell in row] for row in [("text", "label"), *rows]]
    return "\n".join(separator.join(row) for row in quoted) + "\n"


def table(rows: list[tuple[str, str]]) -> pa.Table:
    return pa.table({"id": range(len(rows)), "label": [row[1] for row in rows], "text": [row[0] for row in rows]})


def objects(rows: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"text": text, "label": label} for text, label in rows]


def write_stream(path: str) -> None:
    with pa.ipc.new_stream(path, table(ROWS).schema) as writer:
        for start in range(0, len(ROWS), 3):
            writer.write_table(table(ROWS[start : start + 3]))


def json_lines(values: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


WRITERS: dict[str, Callable[[str], object]] = {
    "a.csv": lambda path: Path(path).write_text(csv_text(ROWS), encoding="utf-8"),
    "bom.csv": lambda path: Path(path).write_text(csv_text(ROWS), encoding="utf-8-sig"),
    "a.TSV": lambda path: Path(path).write_text(csv_text(ROWS, "\t"), encoding="utf-8"),
    "a.csv.gz": lambda path: Path(path).write_bytes(gzip.compress(csv_text(ROWS).encode(), mtime=0)),
    "a.jsonl": lambda path: Path(path).write_text("\n" + json_lines(objects(ROWS)), encoding="utf-8-sig"),
    "a.v2.jsonl.gz": lambda path: Path(path).write_bytes(gzip.compress(json_lines(objects(ROWS)).encode(), mtime=0)),
    "list.json": lambda path: Path(path).write_text(json.dumps(objects(ROWS), indent=1)),
    "lines.json": lambda path: Path(path).write_text(json_lines(objects(ROWS)), encoding="utf-8"),
    "a.parquet": lambda path: parquet.write_table(table(ROWS), path, row_group_size=3),
    "a.feather": lambda path: feather.write_feather(table(ROWS), path, chunksize=3),
    "stream.arrow": write_stream,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_keeps_every_value(name: str) -> None:
    WRITERS[name](name)

    assert read(name) == ROWS
    assert {"text", "label"} <= set(column_names(Path(name), separator=None, quote='"'))


def test_every_format_is_tested() -> None:
    assert {format_suffix(Path(name)) for name in WRITERS} | {".tsv.gz", ".json.gz"} == set(format_suffixes())
    assert format_suffix(Path("a.gz")) is None


def test_long_cells_are_read() -> None:
    Path("a.csv").write_text("text,label\n" + "a" * 200_000 + ",b\n")

    assert len(read("a.csv")[0][0]) == 200_000


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    small = Limits(line_bytes=8, expansion=2)
    for module in (readers, line_reader, untrusted):
        monkeypatch.setattr(module, "LIMITS", small)
    return small


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
@pytest.mark.parametrize("is_encoded", [False, True])
def test_long_texts_of_a_table_are_errors_of_their_rows(name: str, is_encoded: bool) -> None:
    texts = pa.array([None, *["12345678"] * 1500, "éééé!", "", "1"])
    rows = pa.table({"text": texts.dictionary_encode() if is_encoded else texts, "label": [1] * len(texts)})
    (parquet.write_table if name == "a.parquet" else feather.write_feather)(rows, name)
    records = [*read_records_or_errors(Path(name), ["text", "label"], separator=None, quote='"', column_remedy="")]
    assert [str(each) for each in records if isinstance(each, DataError)] == [
        f"{name}, row 1502: is longer than 8 bytes. Check the file, or raise data.max_line_bytes."
    ]
    assert [each[0] for each in records if not isinstance(each, DataError)] == [None, *["12345678"] * 1500, "", "1"]


def test_a_text_that_is_stored_once_may_be_any_number_of_rows(limits: Limits, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(untrusted, "_ALWAYS_UNPACKED", 0)
    limits.line_bytes = 10_000
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 3000), pa.array(["word " * 1000]))
    parquet.write_table(pa.table({"text": texts, "label": range(3000)}), "a.parquet")
    with pytest.raises(
        DataError, match=r"a\.parquet: unpacks to more than 2 times its size.*raise data\.max_expansion"
    ):
        read("a.parquet")
    limits.expansion = 15_000_000 // Path("a.parquet").stat().st_size + 1
    assert len(read("a.parquet")) == 3000


@pytest.mark.parametrize("name", ["a.parquet", "a.feather"])
@pytest.mark.parametrize("is_list", [False, True])
def test_a_repeated_text_is_refused_before_it_fills_the_memory(
    name: str, is_list: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "_DECODED_BYTES", 1 << 25)
    texts: pa.Array = pa.DictionaryArray.from_arrays(pa.array([0] * 1024, pa.int32()), pa.array(["a" * (1 << 20)]))
    if is_list:
        texts = pa.ListArray.from_arrays(pa.array([*range(0, 1025, 4)], pa.int32()), texts)
    table = pa.table({"text": texts})
    if name == "a.parquet":
        parquet.write_table(table, name, dictionary_pagesize_limit=1 << 30)
    else:
        feather.write_feather(table, name)
    pool = pa.default_memory_pool()
    before = max(pool.max_memory(), pool.bytes_allocated())
    with pytest.raises(DataError, match=r"unpacks to more than 200 times its size"):
        for _ in read_records(Path(name), ["text"], separator=None, quote='"', column_remedy=""):
            pass
    assert pool.max_memory() - before < 1 << 28


def test_key_missing_from_a_later_object_is_a_missing_value() -> None:
    Path("a.jsonl").write_text(json_lines([{"text": "a", "label": 1}, {"text": "b"}]))

    assert read("a.jsonl") == [("a", 1), ("b", None)]


TWO_MISSING = "has no column 'text' and no column 'label'. "
BROKEN: list[tuple[str, bytes, str]] = [
    ("a.csv", b"texts,label\na,b\n", "has no column 'text'. Did you mean texts? Its columns are 'texts', 'label';"),
    ("a.csv", b"x,y\na,b\n", TWO_MISSING + "Its columns are 'x', 'y'; set data.text and data.label."),
    ("a.jsonl", b'{"texts": 1, "lable": 2}', TWO_MISSING + "Did you mean texts and lable? Its columns are 'texts'"),
    ("a.json", b'{"data": [{"text": "a"}]}', TWO_MISSING + "Its columns are 'data';"),
    ("a.csv", b"text,text,label\na,b,c\n", "has 2 columns 'text'."),
    ("a.csv", b"text;label\na;b\n", "and their separator with data.separator."),
    ("a.csv", b"", "is empty."),
    ("a.csv", "text,label\na,b\n你,b\n".encode("gb18030"), "line 3: byte 0xc4 at offset 15 of the file is not UTF-8."),
    ("a.csv", "text,label\n".encode("utf-16"), "line 1: byte 0xff at offset 0 of the file is not UTF-8."),
    ("a.csv", b'text,label\n"two\nlines",b\na,b,c\n', "line 4: expected 2 cells as in the header, got 3. Quote cells"),
    ("a.tsv", b"text\tlabel\na\n", "line 2: expected 2 cells as in the header, got 1."),
    ("a.csv", b'text,label\na,b\n"c,d\ne,f\n', "line 3: broken CSV: unexpected end of data."),
    ("a.tsv", b'text\tlabel\n"a" b\tc\n', "line 2: broken CSV: '\t' expected after '\"'."),
    ("a.jsonl", b'{"text": "a", "label": "b"}\n\n{"text": "a", "label": }\n', "line 3: broken JSON at column 24: Exp"),
    ("a.json", b'[\n{"text": "a",\n\n "label": }]', "line 4: broken JSON at column 11: Expecting value."),
    ("a.json", b'[{"text": "a", "label": "b"}, 3]', "item 2: expected an object with the columns"),
    (
        "a.jsonl",
        b'{"text": "a", "label": "b"}\n{"text": "a", "text": "c"}\n',
        "line 2: an object has a key twice, got 'text'",
    ),
    (
        "a.json",
        b'[{"text": "a", "label": "b"}, {"label": 1, "label": 1}]',
        "item 2: an object has a key twice, got 'label'",
    ),
    ("a.jsonl", b'"text"\n', "line 1: expected an object with the columns text, label, got 'str'."),
    ("a.parquet", b"PAR1 this is no Parquet file PAR1", "cannot be read: "),
    ("a.arrow", b"ARROW1 this is no Arrow file", "cannot be read: "),
    ("a.arrow", b"neither is this a stream", "cannot be read: "),
    ("a.csv.gz", gzip.compress(b"text,label\na,b\n" * 99, mtime=0)[:-20], "cannot be read: "),
    ("a.csv.gz", b"text,label\na,b\n", "cannot be read: Not a gzipped file"),
]


def test_broken_file_is_one_message_with_the_place() -> None:
    for name, content, message in BROKEN:
        Path(name).write_bytes(content)

        with pytest.raises(DataError, match=f"^{name}[:,] (.* )?{re.escape(message)}") as caught:
            read(name)

        assert len(caught.value.messages) == 1
        assert "\n" not in str(caught.value)


def test_column_missing_from_a_parquet_or_arrow_file_is_reported() -> None:
    for name, write, columns in (
        ("a.parquet", parquet.write_table, ["text"]),
        ("a.feather", feather.write_feather, ["label", "text2"]),
    ):
        write(pa.table({column: ["a"] for column in columns}), name)
        with pytest.raises(DataError, match=rf"^{name}: has no column '(label|text)'\. .*are '{columns[0]}'"):
            read(name)


def test_damage_inside_a_parquet_file_is_reported() -> None:
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
def test_broken_record_does_not_affect_other_records(name: str, content: bytes, expected: list[str]) -> None:
    Path(name).write_bytes(content)
    records = list(
        read_records_or_errors(Path(name), ["text"], separator=None, quote='"', column_remedy="set data.text")
    )

    assert len(records) == len(expected)
    for record, text in zip(records, expected, strict=True):
        if isinstance(record, DataError):
            assert str(record).startswith(f"{name}, {text}: ")
        else:
            assert record[0] == text
    with pytest.raises(DataError, match=next(text for text in expected if " " in text)):
        list(read_records(Path(name), ["text"], separator=None, quote='"', column_remedy="set data.text"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"te\xffxt\none\n", "line 1: byte 0xff"),
        ("a.csv", b'"te"xt\none\n', "line 1: broken CSV"),
        ("a.csv", b"words\none\n", "has no column 'text'"),
        ("a.json", b"[1,", "broken JSON"),
    ],
)
def test_broken_header_or_list_ends_the_file(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)

    with pytest.raises(DataError, match=message):
        list(read_records_or_errors(Path(name), ["text"], separator=None, quote='"', column_remedy="set data.text"))


def read_with_doubts(lines: list[str], quote: str | None = '"') -> tuple[list[Any], list[str]]:
    """Return the texts of a CSV file with three ordinary columns around some lines, and the doubts about it."""
    ordinary = [f"word {number},{number}.5,{'ab'[number % 2]}" for number in range(20)]
    Path("a.csv").write_text("\n".join(["text,size,label", *ordinary[:9], *lines, *ordinary[9:]]), encoding="utf-8")
    doubts: list[str] = []
    options: dict[str, Any] = {"separator": None, "quote": quote, "column_remedy": "", "on_doubt": doubts.append}
    return [text for (text,) in read_records(Path("a.csv"), ["text"], **options)], doubts


def test_rows_that_a_quoted_cell_has_swallowed_are_noticed() -> None:
    swallowed = ['"hello there,1,a', "some,2,b", 'size 12",4,b']
    texts, doubts = read_with_doubts(swallowed)
    assert len(texts) == 21
    assert doubts == [
        "a.csv, line 11: a quoted cell has 3 lines, which look like rows of the file. Set data.quote=null if quotes "
        "are ordinary characters, or double the quotes inside a quoted cell."
    ]
    texts, doubts = read_with_doubts(swallowed, quote=None)
    assert (texts[9], len(texts), doubts) == ('"hello there', 23, [])


@pytest.mark.parametrize(
    "lines",
    [
        ['"Dear Bob,', 'how are you, fine?",1,a'],
        ['"two', 'lines",1,a'],
        ['"1,2,a is no row', 'for it has no label",1,a'],
        ['"a list, 1, x', 'and more, 2, y",3,a'],
    ],
)
def test_cells_of_several_lines_are_no_doubt(lines: list[str]) -> None:
    assert read_with_doubts(lines)[1] == []
