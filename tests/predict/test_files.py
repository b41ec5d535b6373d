"""Inputs and outputs of predictions: files, folders and texts are distinguished, and output files are complete."""

import csv
import datetime
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pyarrow import parquet

from trainer.errors import ConfigError, DataError
from trainer.predict.files import PredictionPaths, check_output, open_output, resolve_paths
from trainer.protocols import Prediction


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with a file of each type."""
    monkeypatch.chdir(tmp_path)
    for name in ("zh.csv", "notes.md", "texts.txt"):
        (tmp_path / name).touch()
    (tmp_path / "gallery").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "a text.",
        "zh.cs is no file",
        "3.14",
        "Yes.",
        "a.\nb",
        "今天天气很好。",
        "no\0path",
        "e.g.",
        "~",
        "~50 people came",
        "~nobody-of-this-name",
        '{"a":"b/c.csv"}',
        "x" * 5000 + ".csv",
    ],
)
def test_text_that_is_no_file_name_is_a_text(text: str, folder: Path) -> None:
    assert resolve_paths(text, None, None) == PredictionPaths(text, None, None)


def test_home_is_expanded_only_in_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert resolve_paths("~/zh.csv", "~/texts.txt", "~/out.csv") == PredictionPaths(
        folder / "zh.csv", folder / "texts.txt", folder / "out.csv"
    )


def test_existing_files_and_folders_are_inputs(folder: Path) -> None:
    paths = PredictionPaths(Path("zh.csv"), Path("texts.txt"), Path("out.jsonl"))
    assert resolve_paths("zh.csv", "texts.txt", "out.jsonl") == paths
    assert resolve_paths("gallery", None, "-") == PredictionPaths(Path("gallery"), None, None)
    assert resolve_paths("-", None, None) == resolve_paths(None, None, None) == PredictionPaths(None, None, None)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        (
            "zh.cs",
            "Did you mean zh.csv? To predict a text that looks like a file name, pass it",
        ),
        ("./zh.csv.gz", "Did you mean zh.csv?"),
        ("gallary/", "Did you mean gallery?"),
        ("rows.xlsx", "Paths are relative to"),
        ("gone/zh", "Paths are relative to"),
        ("数据/文件.csv", "Paths are relative to"),
    ],
)
def test_missing_file_is_not_taken_for_a_text(text: str, remedy: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match="through standard input with input=-") as caught:
        resolve_paths(text, None, None)
    assert caught.value.messages[0].startswith(f"input: no such file, got '{text}'. {remedy}")


def test_a_pipe_is_no_input(folder: Path) -> None:
    os.mkfifo("pipe.csv")
    with pytest.raises(ConfigError, match=r"^input: is a pipe or a device, not a file, got 'pipe\.csv'.*input=-"):
        resolve_paths("pipe.csv", None, None)


def test_all_problems_are_reported_together(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_paths("notes.md", "txets.txt", "gone/out.csv")
    assert [message.split(",")[0] for message in caught.value.messages] == [
        "input: unknown file format",
        "corpus: no such file",
        "output: its folder does not exist",
    ]
    with pytest.raises(ConfigError, match=r"^corpus: must be a file, got 'a text'"):
        resolve_paths("x", "a text", None)
    Path("texts.csv").touch()
    with pytest.raises(ConfigError, match=r"^output: is the same file as corpus, got './texts\.csv'"):
        resolve_paths("x", "texts.csv", "./texts.csv")


PREDICTIONS: list[dict[str, Any]] = [
    {"error": "row 1: nothing"},
    {"label": "é, ü", "probability": 0.5, "probabilities": {"é, ü": 0.5}, "embedding": [0.1, 2], "tags": []},
    {"label": "b\nc", "probability": 1, "probabilities": {}, "embedding": [1.5, 2.5], "tags": ["O", None]},
]


def write_all(path: Path, predictions: list[dict[str, Any]] = PREDICTIONS) -> Path:
    with open_output(path) as write:
        for prediction in predictions:
            write(prediction)
        assert not path.exists()
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    return path


def test_json_lines_contain_the_predictions(tmp_path: Path) -> None:
    text = write_all(tmp_path / "out.jsonl").read_text("utf-8")

    assert [json.loads(line) for line in text.splitlines()] == PREDICTIONS
    assert "é, ü" in text


def test_csv_cells_that_are_neither_text_nor_number_are_json(tmp_path: Path) -> None:
    with write_all(tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        fault, one, two = csv.DictReader(file)

    assert fault == {**dict.fromkeys(PREDICTIONS[1], ""), "error": "row 1: nothing"}
    assert (one["label"], one["probability"], one["error"]) == ("é, ü", "0.5", "")
    assert json.loads(one["probabilities"]) == {"é, ü": 0.5}
    assert two["label"] == "b\nc"
    assert json.loads(two["tags"]) == ["O", None]


def test_parquet_columns_have_types(tmp_path: Path) -> None:
    table = parquet.read_table(write_all(tmp_path / "out.parquet"))

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


def test_parquet_columns_have_the_types_of_kept_values(tmp_path: Path) -> None:
    day = datetime.date(2026, 1, 2)
    rows: list[Prediction] = [
        {"row": 1, "input_id": None, "input_day": None},
        {"row": 2, "input_id": "a", "input_day": day},
    ]
    table = parquet.read_table(write_all(tmp_path / "out.parquet", rows))
    assert table.to_pylist() == [row | {"error": None} for row in (rows[0], rows[1] | {"input_day": f'"{day}"'})]
    assert str(table.schema.field("row").type) == "int64"

    mixed: list[Prediction] = [{"input_id": 1}] * 1_000 + [{"input_id": "a"}]
    with pytest.raises(DataError, match=r"column 'input_id': .*\.jsonl"):
        write_all(tmp_path / "mixed.parquet", mixed)
    assert not (tmp_path / "mixed.parquet").exists()


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("count", [0, 1_000, 2_001])
def test_any_number_of_rows_is_written(tmp_path: Path, suffix: str, count: int) -> None:
    path = write_all(tmp_path / f"out.{suffix}", [{"value": float(number)} for number in range(count)])
    if suffix == "parquet":
        assert parquet.read_table(path).num_rows == count
    else:
        assert len(path.read_text().splitlines()) == count + 1


def test_errors_only_have_their_column(tmp_path: Path) -> None:
    path = write_all(tmp_path / "out.csv", [{"error": "nothing"}] * 2)
    assert path.read_text() == "error\nnothing\nnothing\n"


def interrupt(path: Path) -> None:
    with open_output(path) as write:
        write(PREDICTIONS[1])
        raise KeyboardInterrupt


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_interrupted_output_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        interrupt(path)

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_unwritable_output_is_refused(tmp_path: Path) -> None:
    for name, problem in (("out.xls", "unknown file format"), ("gone/out.csv", "its folder does not exist")):
        with pytest.raises(ConfigError, match=problem):
            check_output(tmp_path / name, force=False)
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        check_output(tmp_path / "a.csv", force=False)
    check_output(tmp_path / "new.parquet", force=False)


def test_existing_file_is_replaced_only_on_request(tmp_path: Path) -> None:
    output = tmp_path / "mine.csv"
    output.write_text("mine")
    with pytest.raises(ConfigError, match=r"output: exists already, got '.+'\. Set force=true to replace it"):
        resolve_paths("a text", None, str(output))
    assert resolve_paths("a text", None, str(output), force=True).output == output
    with pytest.raises(ConfigError, match="output: is the same file as input"):
        resolve_paths(str(output), None, str(output), force=True)
