"""Makes model inputs of the rows of a table."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from trainer.export.bundle.predict import Folder, Inputs, Row


class Tables:
    """Reads rows of a table.

    Usage:
        python predict.py '{"age": 40, "town": "Bern"}'
        python predict.py rows.csv rows.jsonl    the columns by name
        python predict.py < rows.jsonl
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        rows = folder.load("rows.py")
        self.as_text, self.json_type = rows["as_text"], rows["json_type"]

    def read_line(self, line: str) -> Row:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"expected an object in JSON, got {self.json_type(row)}")
        return row

    def encode(self, rows: list[Row]) -> Inputs:
        try:
            cells = [block.pick(rows) for block in self.blocks]
        except KeyError:
            names = [name for block in self.blocks for name in block.names]
            row, absent = next((row, absent) for row in rows if (absent := [name for name in names if name not in row]))
            raise ValueError(
                f"has no column {', '.join(map(repr, absent))}. It has {', '.join(map(repr, row)) or 'none'}"
            ) from None
        return self._join(cells)

    def encode_columns(self, columns: dict[str, Any]) -> Inputs:
        """Return the inputs for rows in columns: a list or an array of numbers (NaN is missing) by name.

        Raises:
            KeyError: A column is missing.
        """
        return self._join([block.gather([columns[name] for name in block.names]) for block in self.blocks])

    def _join(self, cells: list[Any]) -> Inputs:
        features = [block.encode(each) for block, each in zip(self.blocks, cells, strict=True)]
        return {"features": features[0] if len(features) == 1 else np.concatenate(features, axis=1)}

    @cached_property
    def blocks(self) -> list[Numbers | Categories]:
        """The columns in order. Numbers that follow each other are one block, which is read at once."""
        blocks: list[Numbers | Categories] = []
        for kind, group in groupby(self.folder.read_json("table.json")["columns"], lambda column: column["kind"]):
            columns = list(group)
            blocks += [Numbers(columns)] if kind == "number" else [Categories(each, self.as_text) for each in columns]
        return blocks


class Numbers:
    """Columns of numbers.

    The features of a column are its standardized value, unless it is constant, and whether it is missing, if training
    had missing cells.
    """

    def __init__(self, columns: list[Row]) -> None:
        self.names = [column["name"] for column in columns]
        self.mean = np.array([column["mean"] for column in columns])
        self.std = np.array([column["std"] or 1.0 for column in columns])
        self.kept = np.flatnonzero([kept for column in columns for kept in (column["std"] > 0, column["missing"])])
        self.are_plain = all(column["std"] > 0 and not column["missing"] for column in columns)
        self._pick = itemgetter(*self.names)

    def pick(self, rows: list[Row]) -> list[Any]:
        """Return the cells of rows."""
        return [*map(self._pick, rows)] if len(self.names) > 1 else [(self._pick(row),) for row in rows]

    def gather(self, columns: list[Any]) -> Any:
        """Return the cells of rows, given columns."""
        if all(isinstance(cells, np.ndarray) for cells in columns):
            return np.stack(columns, axis=1)
        return [*zip(*columns, strict=True)]

    def encode(self, cells: Any) -> np.ndarray:
        """Return the features of rows of cells."""
        standardized = (self.read(cells) - self.mean) / self.std
        missing = np.isnan(standardized)
        standardized[missing] = 0.0
        if not abs(standardized).max() <= LARGEST:
            name = self.names[(abs(standardized) > LARGEST).any(axis=0).argmax()]
            raise ValueError(f"column {name!r}: expected a finite number, within float32 once standardized")
        if not self.are_plain:
            standardized = np.stack([standardized, missing], axis=-1).reshape(len(cells), -1)[:, self.kept]
        features: np.ndarray = standardized.astype(np.float32)
        return features

    def read(self, cells: Any) -> np.ndarray:
        """Return the numbers of rows of cells, NaN for missing cells."""
        try:
            values = np.array(cells)
            if values.dtype.kind == "O" and PLAIN.issuperset(map(type, values.flat)):
                values = values.astype(np.float64)
        except (ValueError, OverflowError):  # a cell is a list or a huge integer
            values = np.array(None)
        if values.ndim != 2 or values.dtype.kind not in "bif":  # a cell is no number
            values = np.array([[*map(number, self.names, row)] for row in cells])
        return values.astype(np.float64)


class Categories:
    """A column of categories, one-hot: the known categories, missing if training had missing cells, others."""

    def __init__(self, column: Row, as_text: Callable[[object], str]) -> None:
        self.names, self.as_text = [column["name"]], as_text
        self.known = {text: slot for slot, text in enumerate(column["categories"])}
        self.spellings = boolean_names(column["categories"])
        self.other = len(self.known) + column["missing"]
        self.features = np.eye(self.other + 1, 0 if column["constant"] else self.other + 1, dtype=np.float32)

    def pick(self, rows: list[Row]) -> list[Any]:
        """Return the cell of each row."""
        (name,) = self.names
        return [row[name] for row in rows]

    def gather(self, columns: list[Any]) -> Any:
        """Return the cell of each row, given the column."""
        (cells,) = columns
        return cells.tolist() if isinstance(cells, np.ndarray) else cells

    def encode(self, cells: Any) -> np.ndarray:
        """Return the features of cells."""
        try:
            slots = {cell: self.slot(cell) for cell in {*cells}}  # equal cells, such as 1 and 1.0, are one category
        except TypeError:  # a cell is a list
            slots = {}
        features: np.ndarray = self.features[[slots[cell] if slots else self.slot(cell) for cell in cells]]
        return features

    def slot(self, cell: object) -> int:
        if is_missing(cell):
            return len(self.known)
        text = self.as_text(cell)
        name = text if text in self.known else self.spellings.get(text.casefold(), text)
        slot: int = self.known.get(name, self.other)
        return slot


READERS = {"tables": Tables}
LARGEST = float(np.finfo(np.float32).max)
PLAIN = frozenset({float, int, bool, type(None)})
"""Types of cells that are numbers or missing."""
BOOLEANS = {"true": 1, "false": 0, "1": 1, "0": 0}


def boolean_names(known: list[str]) -> dict[str, str]:
    """Return the known category of each spelling of a boolean, if all categories are booleans."""
    by_value = {BOOLEANS.get(name.casefold()): name for name in known}
    if None in by_value or len(by_value) != len(known):
        return {}
    return {spelling: by_value[value] for spelling, value in BOOLEANS.items() if value in by_value}


def number(column: str, cell: Any) -> float:
    """Return the number in a cell, NaN if it is missing."""
    if is_missing(cell):
        return np.nan
    if isinstance(cell, str) and (truth := cell.strip().casefold()) in ("true", "false"):
        return float(truth == "true")
    try:
        return float(str(cell).replace("_", "?") if isinstance(cell, str) else cell)
    except (ValueError, TypeError, OverflowError):
        raise ValueError(f"column {column!r}: expected a number, got {cell!r}") from None


def is_missing(cell: object) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())
