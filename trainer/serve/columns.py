"""Requests and answers in columns, which cost less than rows: a column of numbers is read at once."""

from __future__ import annotations

from array import array
from itertools import chain
from typing import Any

import numpy as np

from trainer.export.bundle.predict import Row

Cells = np.ndarray | list[Any]

_NUMBERS = frozenset({float, int, bool, type(None)})
_LARGEST = 2.0**53
"""Integers up to here are the same as floats."""


class Columns:
    """Rows in columns of equal length.

    Args:
        cells: The cells of each column: an array of float64, in which null is NaN, or a list.
        count: Number of rows.
    """

    def __init__(self, cells: dict[str, Cells], count: int) -> None:
        self.cells, self._count = cells, count

    def __len__(self) -> int:
        return self._count

    def between(self, start: int, end: int) -> Columns:
        """Return the rows from `start` to before `end`."""
        if (start, end) == (0, self._count):
            return self
        return Columns({name: cells[start:end] for name, cells in self.cells.items()}, end - start)

    def rows(self) -> list[Row]:
        """Return the rows as objects."""
        cells = [each if isinstance(each, list) else _to_list(each) for each in self.cells.values()]
        return [dict(zip(self.cells, row, strict=True)) for row in zip(*cells, strict=True)]


def read_columns(columns: dict[str, list[Any]]) -> dict[str, Cells]:
    """Return columns of numbers and null as arrays if this changes no number, and other columns as they are."""
    likely = [name for name, cells in columns.items() if cells and isinstance(cells[0], int | float)]
    flat = array("d")
    try:
        for name in likely:
            flat.fromlist(columns[name])
    except (TypeError, OverflowError):
        return {name: _read_column(cells) for name, cells in columns.items()}
    values = np.array(flat)
    if (abs(values) >= _LARGEST).any():
        return {name: _read_column(cells) for name, cells in columns.items()}
    numbers = dict(zip(likely, values.reshape(len(likely), -1), strict=True)) if likely else {}
    return {name: numbers[name] if name in numbers else _read_column(cells) for name, cells in columns.items()}


def _read_column(cells: list[Any]) -> Cells:
    if not _NUMBERS.issuperset(map(type, cells)):
        return cells
    try:
        values = np.array(cells, dtype=np.float64)
    except OverflowError:
        return cells
    return cells if (abs(values) >= _LARGEST).any() else values


def to_columns(answers: list[Row]) -> dict[str, list[Any]]:
    """Return answers in columns; null stands for a field that the answer of a row does not have."""
    names = dict.fromkeys(chain.from_iterable(answers))
    return {name: [answer.get(name) for answer in answers] for name in names}


def _to_list(cells: np.ndarray) -> list[Any]:
    values: list[Any] = cells.tolist()
    return [None if value != value else value for value in values] if np.isnan(cells).any() else values
