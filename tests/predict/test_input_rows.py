"""Rows of every type of input, usable and broken, and the lines of standard input."""

import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.support.sources import write_images
from trainer.errors import ConfigError, DataError
from trainer.predict.files import is_readable
from trainer.predict.input_rows import InputRow, RowFormat, read_rows, read_stdin_lines

TEXT = RowFormat(("text",), {})
PAIR = RowFormat(("text", "text_pair"), {"text": "question", "text_pair": "answer"})
WORDS = RowFormat(("words",), {}, list_separator="|")
FEATURES = RowFormat(("features",), {}, numeric={"size": True, "colour": False})


def read(source: Path | str, row_format: RowFormat) -> list[Any]:
    """Return the values of each row (the value itself if there is one role), or its error message."""
    values = []
    for row in read_rows(source, row_format):
        assert isinstance(row, InputRow)
        one = list((row.values or {}).values())
        values.append(row.error if row.error is not None else one[0] if len(one) == 1 else tuple(one))
    return values


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "jsonl.gz", "parquet", "txt", "txt.gz"])
def test_files_of_texts_are_read(tmp_path: Path, suffix: str) -> None:
    texts = ["one, two", "three"]
    file = tmp_path / f"rows.{suffix}"
    lines = "".join(json.dumps({"label": "x", "text": text}) + "\n" for text in texts)
    content = {
        "csv": 'label,text\nx,"one, two"\nx,three\n',
        "tsv": "label\ttext\nx\tone, two\nx\tthree\n",
        "json": f"[{','.join(lines.splitlines())}]",
        "jsonl": lines,
        "txt": "one, two\r\nthree",
    }
    if suffix == "parquet":
        parquet.write_table(pyarrow.table({"text": texts, "label": ["x", "x"]}), file)
    else:
        data = content[suffix.removesuffix(".gz")].encode()
        file.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)

    assert read(file, TEXT) == texts
    assert [row.number for row in read_rows(file, TEXT) if row] == [1, 2]
    assert is_readable(file)


@pytest.mark.parametrize(
    ("line", "row_format", "values"),
    [
        ("a text\twith a tab", TEXT, "a text\twith a tab"),
        ("one\ttwo", PAIR, ("one", "two")),
        ("Ann likes  Bo", WORDS, ["Ann", "likes", "Bo"]),
        ('["New York", "is"]', WORDS, ["New York", "is"]),
        ('{"size": "1.5", "colour": 3, "label": "x"}', FEATURES, {"size": 1.5, "colour": "3"}),
        ('{"size": 2, "colour": null}', FEATURES, {"size": 2.0, "colour": None}),
        ('{"size": "", "colour": " "}', FEATURES, {"size": None, "colour": None}),
    ],
)
def test_line_is_parsed_for_the_roles(line: str, row_format: RowFormat, values: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text(f"{line}\n", "utf-8")

    assert read(line, row_format) == read(file, row_format) == [values]


@pytest.mark.parametrize(
    ("line", "row_format", "error"),
    [
        ("  ", TEXT, "rows.txt, line 1: has no text."),
        ("one", PAIR, "rows.txt, line 1: expected two texts separated by a tab, got 1"),
        ("one\t", PAIR, "rows.txt, line 1: has no text or no second text"),
        ("[1, ", WORDS, "rows.txt, line 1: expected a list of words in JSON (broken JSON at column 5: "),
        ("red", FEATURES, "rows.txt, line 1: expected an object with size, colour in JSON, got 'red'. Or name"),
        (
            '{"size": 2}',
            FEATURES,
            "rows.txt, line 1: has no column 'colour'. Its columns are 'size'; use the column names of",
        ),
        (
            "{}",
            FEATURES,
            "rows.txt, line 1: has no columns 'size', 'colour'. Use the column names of the training data, and",
        ),
        ('{"size": "big", "colour": 1}', FEATURES, "rows.txt, line 1, column 'size': expected a number, got 'big'"),
    ],
)
def test_line_that_cannot_be_used_is_an_error(line: str, row_format: RowFormat, error: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text(f"{line}\nwhatever\n", "utf-8")
    one, two = read(file, row_format)

    assert one.startswith(f"{tmp_path}/{error}")
    assert two == "whatever" or row_format is not TEXT


def test_columns_are_selected_by_role(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("answer,question,words\nb,a,x|y z\n", "utf-8")

    assert read(file, PAIR) == [("a", "b")]
    assert read(file, WORDS) == [["x", "y z"]]
    with pytest.raises(DataError, match=r"has no column 'text'.* set columns\.text\."):
        read(file, TEXT)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_predictions_repeat_the_number_and_columns_of_their_row(tmp_path: Path, suffix: str) -> None:
    rows = [{"id": "7", "text": "one", "label": "x"}, {"id": "8", "text": "two", "label": "y"}]
    file = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        lines = ["id,text,label", *(",".join(row.values()) for row in rows)]
        file.write_text("".join(f"{line}\n" for line in (lines if suffix == "csv" else map(json.dumps, rows))))

    kept = RowFormat(("text",), {}, keep=("label", "text", "row"))
    assert [row and (row.identity, row.values) for row in read_rows(file, kept)] == [
        ({"row": 1, "input_label": "x", "input_text": "one"}, {"text": "one"}),
        ({"row": 2, "input_label": "y", "input_text": "two"}, {"text": "two"}),
    ]
    for source, problem in ((file, r"keep: .* has no such column, got 'key'"), ("a text", "keep: the input has no")):
        with pytest.raises(ConfigError, match=problem):
            list(read_rows(source, RowFormat(("text",), {}, keep=("row", "key"))))
    (line,) = read_rows("a text", RowFormat(("text",), {}, keep=("row",)))
    assert line is not None
    assert line.identity == {"row": 1}


def test_broken_rows_keep_their_number(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("id,text\n7\n8,two\n")

    broken, two = read_rows(file, RowFormat(("text",), {}, keep=("row", "id")))
    assert broken is not None
    assert broken.error is not None
    assert broken.identity == {"row": 1}
    assert two is not None
    assert two.identity == {"row": 2, "input_id": "8"}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_object_without_a_column_is_an_error_and_null_is_a_missing_value(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows.{suffix}"
    rows = ['{"color": "red", "size": 1}', '{"colour": null, "size": null}', "{}", '{"colour": "red", "size": 1}']
    file.write_text(f"[{','.join(rows)}]" if suffix == "json" else "\n".join(rows), "utf-8")
    first, missing, third, whole = read(file, FEATURES)

    assert missing == {"size": None, "colour": None}
    assert whole == {"size": 1.0, "colour": "red"}
    place = {"json": "item", "jsonl": "line"}[suffix]
    assert first.startswith(
        f"{file}, {place} 1: has no column 'colour'. Its columns are 'color', 'size'; use the column names"
    )
    assert third.startswith(f"{file}, {place} 3: has no columns 'size', 'colour'. Use the column names of")
    assert "set columns.text." in read(file, TEXT)[0]


def test_table_without_a_column_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("size,color\n1,red\n", "utf-8")
    with pytest.raises(
        DataError, match=r"has no column 'colour'\. Did you mean color\? .* use the column names of the training data"
    ):
        read(tmp_path / "rows.csv", FEATURES)


def test_images_are_read_from_folders_tables_and_files(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 6)
    (tmp_path / "images/.hidden.png").write_bytes(b"")
    (tmp_path / "images/notes.md").write_text("no image")
    image = RowFormat(("image",), {})
    (tmp_path / "rows.csv").write_text("image\nimages/corner_0/0.png\nimages/gone.png\n")
    table = list(read_rows(tmp_path / "rows.csv", image))
    (one,) = read_rows(tmp_path / "images/corner_1/1.png", image)

    assert [row.identity["image"] for row in read_rows(tmp_path / "images", image) if row] == [
        *("corner_0/0.png", "corner_0/4.png", "corner_1/1.png", "corner_1/5.png", "corner_2/2.png", "corner_3/3.png")
    ]
    assert table[0] is not None
    assert table[0].values == {"image": {"bytes": None, "path": str(tmp_path / "images/corner_0/0.png")}}
    assert table[1] is not None
    assert "rows.csv, row 2, column 'image': the image cannot be read: No such file" in str(table[1].error)
    assert one is not None
    assert one.identity == {}
    with pytest.raises(ConfigError, match="contains images, but the task reads text"):
        read_rows(tmp_path / "images", TEXT).__next__()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="contains no images"):
        list(read_rows(tmp_path / "empty", image))


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Return the write end of a pipe to standard input; the test closes it."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield writing


def test_lines_are_yielded_at_once_and_none_before_a_wait(pipe: int) -> None:
    lines = read_stdin_lines()
    os.write(pipe, b"\xef\xbb\xbfone\ntwo\nthr")

    assert [next(lines) for _ in range(3)] == ["one", "two", None]
    os.write(pipe, "ee\n\nfünf".encode())
    assert [next(lines) for _ in range(3)] == ["three", "", None]
    os.close(pipe)
    assert list(lines) == ["fünf"]


def test_line_that_is_not_utf_8_is_an_error(pipe: int) -> None:
    os.write(pipe, b"one\nt\xffwo\nthree\n")
    os.close(pipe)
    one, two, three = (line for line in read_stdin_lines() if line is not None)

    assert (one, three) == ("one", "three")
    assert isinstance(two, DataError)
    assert str(two).startswith("standard input, line 2: byte 0xff at offset 5")


@pytest.mark.parametrize(("content", "expected"), [(b"", []), (b"\n", [""]), (b"a\r\n", ["a\r"])])
def test_last_line_of_stdin(pipe: int, content: bytes, expected: list[Any]) -> None:
    os.write(pipe, content)
    os.close(pipe)
    assert [line for line in read_stdin_lines() if line is not None] == expected
