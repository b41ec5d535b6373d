"""Rows of every role come back as they were written."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from trainer.data.splits import SplitWriter, _classes_in, drop_unseen_classes, split_schema

ROWS: dict[str, list[Any]] = {
    "text": ["你好", "", "a"],
    "labels": [["a", "b"], [], ["c"]],
    "value": [[1.0], [2.5, -1.0], [0.0]],
    "score": [0.5, -1.0, 2.0],
    "words": [["a"], ["b", "c"], ["d"]],
    "tags": [["O"], ["B-x", "I-x"], ["O"]],
    "features": [{"a": 1.0, "b": "x"}, {"a": None, "b": None}, {"a": 0.1, "b": "y"}],
    "image": [{"bytes": b"\x89", "path": None}, {"bytes": None, "path": "a.png"}, {"bytes": b"", "path": "b"}],
    "row": [1, 2, 3],
}


def write(path: Path, columns: dict[str, list[Any]]) -> None:
    schema = split_schema(list(columns)[:-1], {"a": True, "b": False})
    with SplitWriter(path, schema) as split:
        for values in zip(*columns.values(), strict=True):
            split.add(*values)
        assert split.num_rows == len(columns["row"])


def test_every_role_comes_back(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", ROWS)

    assert Dataset.from_file(str(tmp_path / "a.arrow")).to_dict() == ROWS


def test_an_empty_split_has_its_columns(tmp_path: Path) -> None:
    write(tmp_path / "a.arrow", {name: [] for name in ROWS})

    assert Dataset.from_file(str(tmp_path / "a.arrow")).column_names == list(ROWS)


@pytest.mark.parametrize("value", ["x" * 100_000, b"x" * 100_000])
def test_long_values_are_written_in_batches(tmp_path: Path, value: str | bytes) -> None:
    role, cell = ("text", value) if isinstance(value, str) else ("image", {"bytes": value, "path": None})
    write(tmp_path / "a.arrow", {role: [cell] * 100, "row": list(range(100))})

    with pa.memory_map(str(tmp_path / "a.arrow")) as file, pa.ipc.open_stream(file) as reader:
        assert len(list(reader)) == 3


@pytest.mark.parametrize(
    ("role", "values", "kept"),
    [
        ("label", ["a", "b", "c", "a"], [0, 1, 3]),
        ("labels", [["a"], [], ["a", "c"], ["b", "a"]], [0, 1, 3]),
        ("tags", [["c"], ["a"], ["b"], ["a", "b"]], [1, 2, 3]),
    ],
)
def test_rows_with_other_classes_are_removed(tmp_path: Path, role: str, values: list[Any], kept: list[int]) -> None:
    path = tmp_path / "a.arrow"
    write(path, {role: values, "row": [10, 11, 12, 13]})

    count, first = drop_unseen_classes(path, role, {"a", "b"})

    (gone,) = set(range(4)) - set(kept)
    assert (count, first) == (1, 10 + gone)
    expected = {role: [values[position] for position in kept], "row": [10 + position for position in kept]}
    assert Dataset.from_file(str(path)).to_dict() == expected
    assert drop_unseen_classes(path, role, {"a", "b"}) == (0, -1)
    assert [file.name for file in tmp_path.iterdir()] == ["a.arrow"]


def test_the_classes_of_a_value() -> None:
    assert list(_classes_in("ab")) == ["ab"]
    assert list(_classes_in(["a", "b"])) == ["a", "b"]
