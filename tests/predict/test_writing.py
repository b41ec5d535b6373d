"""Answers in files: under their name when all are there, or not at all."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from trainer.errors import ConfigError
from trainer.predict.writing import check_output, writing

ANSWERS: list[dict[str, Any]] = [
    {"error": "row 1: nothing"},
    {"label": "é, ü", "probability": 0.5, "probabilities": {"é, ü": 0.5}, "embedding": [0.1, 2], "tags": []},
    {"label": "b\nc", "probability": 1, "probabilities": {}, "embedding": [1.5, 2.5], "tags": ["O", None]},
]


def written(path: Path, answers: list[dict[str, Any]] = ANSWERS) -> Path:
    with writing(path) as write:
        for answer in answers:
            write(answer)
        assert not path.exists()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return path


def test_json_lines_are_the_answers(tmp_path: Path) -> None:
    text = written(tmp_path / "out.jsonl").read_text("utf-8")

    assert [json.loads(line) for line in text.splitlines()] == ANSWERS
    assert "é, ü" in text


def test_csv_has_json_where_a_cell_is_no_text_or_number(tmp_path: Path) -> None:
    with written(tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        fault, one, two = csv.DictReader(file)

    assert fault == {**dict.fromkeys(ANSWERS[1], ""), "error": "row 1: nothing"}
    assert (one["label"], one["probability"], one["error"]) == ("é, ü", "0.5", "")
    assert json.loads(one["probabilities"]) == {"é, ü": 0.5}
    assert two["label"] == "b\nc"
    assert json.loads(two["tags"]) == ["O", None]


def test_parquet_has_texts_numbers_and_lists_of_numbers(tmp_path: Path) -> None:
    table = parquet.read_table(written(tmp_path / "out.parquet"))

    assert {field.name: str(field.type) for field in table.schema} == {
        "label": "string",
        "probability": "double",
        "probabilities": "string",
        "embedding": "list<element: double>",
        "tags": "string",
        "error": "string",
    }
    assert table["error"].to_pylist() == ["row 1: nothing", None, None]
    assert table["embedding"].to_pylist() == [None, [0.1, 2.0], [1.5, 2.5]]
    assert table["tags"].to_pylist() == [None, "[]", '["O", null]']


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("count", [0, 1_000, 2_001])
def test_groups_of_any_number(tmp_path: Path, suffix: str, count: int) -> None:
    path = written(tmp_path / f"out.{suffix}", [{"value": float(number)} for number in range(count)])
    if suffix == "parquet":
        assert parquet.read_table(path).num_rows == count
    else:
        assert len(path.read_text().splitlines()) == count + 1


def test_faults_alone_have_their_column(tmp_path: Path) -> None:
    path = written(tmp_path / "out.csv", [{"error": "nothing"}] * 2)
    assert path.read_text() == "error\nnothing\nnothing\n"


def break_off(path: Path) -> None:
    with writing(path) as write:
        write(ANSWERS[1])
        raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_what_breaks_off_leaves_the_old_file_and_no_other(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        break_off(path)

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written(tmp_path: Path) -> None:
    for name, problem in (("out.xls", "no known kind"), ("gone/out.csv", "its folder is not there")):
        with pytest.raises(ConfigError, match=problem):
            check_output(tmp_path / name)
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_output(tmp_path / "a.csv")
    check_output(tmp_path / "new.parquet")
