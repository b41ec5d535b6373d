"""Rows of every kind of input, whole and broken."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from tests.support.sources import write_images
from trainer.errors import ConfigError, DataError
from trainer.predict.asked import Reading, Row, rows_of
from trainer.predict.given import is_readable

TEXT = Reading(("text",), {})
PAIR = Reading(("text", "text_pair"), {"text": "question", "text_pair": "answer"})
WORDS = Reading(("words",), {}, list_separator="|")
FEATURES = Reading(("features",), {}, numeric={"size": True, "colour": False})


def found(given: Path | str, reading: Reading) -> list[Any]:
    """The values of each row, alone where there is one role; of a fault the message."""
    values = []
    for row in rows_of(given, reading):
        assert isinstance(row, Row)
        one = list((row.values or {}).values())
        values.append(row.fault if row.fault is not None else one[0] if len(one) == 1 else tuple(one))
    return values


@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "jsonl.gz", "parquet", "txt", "txt.gz"])
def test_files_of_texts(tmp_path: Path, suffix: str) -> None:
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

    assert found(file, TEXT) == texts
    assert [row.number for row in rows_of(file, TEXT) if row] == [1, 2]
    assert is_readable(file)


@pytest.mark.parametrize(
    ("line", "reading", "values"),
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
def test_a_line_as_each_role_reads_it(line: str, reading: Reading, values: Any, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text(f"{line}\n", "utf-8")

    assert found(line, reading) == found(file, reading) == [values]


@pytest.mark.parametrize(
    ("line", "reading", "fault"),
    [
        ("  ", TEXT, "rows.txt, line 1: lacks a text. Give one"),
        ("one", PAIR, "rows.txt, line 1: expected two texts with a tab between, got 1"),
        ("one\t", PAIR, "rows.txt, line 1: lacks a text or a second text"),
        ("[1, ", WORDS, "rows.txt, line 1: expected a list of words in JSON, got 'broken JSON at column"),
        ("red", FEATURES, "rows.txt, line 1: expected an object with size, colour in JSON, got 'broken JSON"),
        (
            '{"size": 2}',
            FEATURES,
            "rows.txt, line 1: has no column 'colour'. Its columns are 'size'; name them by their names in",
        ),
        (
            "{}",
            FEATURES,
            "rows.txt, line 1: has no columns 'size', 'colour'. Name them by their names in training, with",
        ),
        ('{"size": "big", "colour": 1}', FEATURES, "rows.txt, line 1, column 'size': expected a number, got 'big'"),
    ],
)
def test_a_line_that_cannot_be_used(line: str, reading: Reading, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.txt"
    file.write_text(f"{line}\nwhatever\n", "utf-8")
    one, two = found(file, reading)

    assert one.startswith(f"{tmp_path}/{fault}")
    assert two == "whatever" or reading is not TEXT


def test_columns_of_a_file_are_those_that_were_named(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("answer,question,words\nb,a,x|y z\n", "utf-8")

    assert found(file, PAIR) == [("a", "b")]
    assert found(file, WORDS) == [["x", "y z"]]
    with pytest.raises(DataError, match=r"has no column 'text'.* name them by columns\.text\."):
        found(file, TEXT)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_an_object_that_lacks_a_column_is_broken_and_null_is_a_missing_value(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"rows.{suffix}"
    rows = ['{"color": "red", "size": 1}', '{"colour": null, "size": null}', "{}", '{"colour": "red", "size": 1}']
    file.write_text(f"[{','.join(rows)}]" if suffix == "json" else "\n".join(rows), "utf-8")
    first, missing, third, whole = found(file, FEATURES)

    assert missing == {"size": None, "colour": None}
    assert whole == {"size": 1.0, "colour": "red"}
    place = {"json": "item", "jsonl": "line"}[suffix]
    assert first.startswith(
        f"{file}, {place} 1: has no column 'colour'. Its columns are 'color', 'size'; name them by their names"
    )
    assert third.startswith(f"{file}, {place} 3: has no columns 'size', 'colour'. Name them by")
    assert "name them by columns.text." in found(file, TEXT)[0]


def test_a_table_that_lacks_a_column_is_none_of_them(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("size,color\n1,red\n", "utf-8")
    with pytest.raises(DataError, match=r"has no column 'colour'\. Did you mean color\? .* by their names in training"):
        found(tmp_path / "rows.csv", FEATURES)


def test_images_of_a_folder_of_a_table_and_alone(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 6)
    (tmp_path / "images/.hidden.png").write_bytes(b"")
    (tmp_path / "images/notes.md").write_text("no image")
    image = Reading(("image",), {})
    (tmp_path / "rows.csv").write_text("image\nimages/corner_0/0.png\nimages/gone.png\n")
    table = list(rows_of(tmp_path / "rows.csv", image))
    (one,) = rows_of(tmp_path / "images/corner_1/1.png", image)

    assert [row.named["image"] for row in rows_of(tmp_path / "images", image) if row] == [
        *("corner_0/0.png", "corner_0/4.png", "corner_1/1.png", "corner_1/5.png", "corner_2/2.png", "corner_3/3.png")
    ]
    assert table[0] is not None
    assert table[0].values == {"image": {"bytes": None, "path": str(tmp_path / "images/corner_0/0.png")}}
    assert table[1] is not None
    assert "rows.csv, row 2, column 'image': the image cannot be read: No such file" in str(table[1].fault)
    assert one is not None
    assert one.named == {}
    with pytest.raises(ConfigError, match="holds images, and the task reads text"):
        rows_of(tmp_path / "images", TEXT).__next__()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        list(rows_of(tmp_path / "empty", image))
