"""Rows of a CSV file that a quoted cell has probably swallowed: a quote that is none opens it, the next one ends it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from trainer.data.cells import is_number
from trainer.errors import format_error

_NUM_ROWS = 1_000
"""Rows whose cells are known, for comparison."""

_MAX_PLACES = 20
"""Cells of several lines that are compared."""


class SwallowedRows:
    """Compares the lines of a cell with the rows of its file, which it has read so far.

    Args:
        path: The file.
        separator: The separator of its cells.
        quote: The quote around cells.
    """

    def __init__(self, path: Path, separator: str, quote: str) -> None:
        self._path, self._separator, self._quote = path, separator, quote
        self._columns: list[set[str]] = []
        self._num_rows = 0
        self._places: list[tuple[int, list[list[str]]]] = []

    def add(self, line: int, lines: Sequence[str], cells: Sequence[str]) -> None:
        """Add a record.

        Args:
            line: The number of its first line.
            lines: Its lines.
            cells: Its cells, as many as in the header.
        """
        if len(lines) > 1:
            if len(self._places) < _MAX_PLACES:
                rows = [self._split(text.rstrip("\r\n")) for text in lines]
                if all(len(row) == len(cells) for row in rows):
                    self._places.append((line, rows))
        elif self._num_rows < _NUM_ROWS:
            self._num_rows += 1
            self._columns = self._columns or [set() for _ in cells]
            for column, cell in zip(self._columns, cells, strict=True):
                column.add(cell)

    def _split(self, line: str) -> list[str]:
        if line.count(self._quote) % 2:  # the quote that opens or ends the cell
            return line.split(self._separator)
        return next(csv.reader([line], delimiter=self._separator, quotechar=self._quote), [])

    def find(self) -> str | None:
        """Return the message about the first cell whose lines are like rows, at the end of the file; None if none is.

        In each line, all columns of repeated texts contain one of these texts, and all columns of numbers a number.
        """
        repeated = [column if 2 * len(column) <= self._num_rows else None for column in self._columns]
        are_numbers = [all(map(is_number, column)) for column in self._columns]
        for line, rows in self._places:
            fits = [
                cell in known if known is not None and not is_numeric else is_number(cell)
                for row in rows
                for cell, known, is_numeric in zip(row, repeated, are_numbers, strict=True)
                if known is not None or is_numeric
            ]
            if fits and all(fits):
                problem = f"a quoted cell has {len(rows)} lines, which look like rows of the file"
                remedy = (
                    "Set data.quote=null if quotes are ordinary characters, or double the quotes inside a quoted cell"
                )
                return format_error(f"{self._path}, line {line}", problem, remedy)
        return None
