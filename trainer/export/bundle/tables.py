"""Makes model inputs of the rows of a table."""

from __future__ import annotations

import json
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
        self.as_text = folder.load("rows.py")["as_text"]

    def read_line(self, line: str) -> Row:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise ValueError(f"expected an object in JSON, got {type(row).__name__}")
        return row

    def encode(self, rows: list[Row]) -> Inputs:
        columns = self.folder.read_json("table.json")["columns"]
        for row in rows:
            if absent := [column["name"] for column in columns if column["name"] not in row]:
                raise ValueError(
                    f"has no column {', '.join(map(repr, absent))}. It has {', '.join(map(repr, row)) or 'none'}"
                )
        blocks = [
            (numbers if column["kind"] == "number" else self.categories)(column, [row[column["name"]] for row in rows])
            for column in columns
        ]
        return {"features": np.concatenate(blocks, axis=1)}

    def categories(self, column: Row, cells: list[object]) -> np.ndarray:
        """One-hot: the known categories, missing if training had missing cells, others."""
        known, other = column["categories"], len(column["categories"]) + column["missing"]
        texts = [None if is_missing(cell) else self.as_text(cell) for cell in cells]
        names = boolean_names(known)
        texts = [text if text is None or text in known else names.get(text.casefold(), text) for text in texts]
        slots = [len(known) if text is None else known.index(text) if text in known else other for text in texts]
        return np.eye(other + 1, 0 if column["constant"] else other + 1, dtype=np.float32)[slots]


READERS = {"tables": Tables}
BOOLEANS = {"true": 1, "false": 0, "1": 1, "0": 0}


def boolean_names(known: list[str]) -> dict[str, str]:
    """Return the known category of each spelling of a boolean, if all categories are booleans."""
    by_value = {BOOLEANS.get(name.casefold()): name for name in known}
    if None in by_value or len(by_value) != len(known):
        return {}
    return {spelling: by_value[value] for spelling, value in BOOLEANS.items() if value in by_value}


def numbers(column: Row, cells: list[object]) -> np.ndarray:
    if not set(map(type, cells)) <= {float, int}:
        cells = [np.nan if is_missing(cell) else number(column, cell) for cell in cells]
    values = np.array(cells, dtype=np.float64)
    missing = np.isnan(values)
    standardized = np.where(missing, 0.0, (values - column["mean"]) / (column["std"] or 1.0))
    if (abs(standardized) > np.finfo(np.float32).max).any():
        raise ValueError(f"column {column['name']!r}: expected a finite number, within float32 once standardized")
    features = [standardized] * (column["std"] > 0) + [missing] * column["missing"]
    return np.array(features, dtype=np.float32).reshape(-1, len(cells)).T


def number(column: Row, cell: Any) -> float:
    if isinstance(cell, str) and (truth := cell.strip().casefold()) in ("true", "false"):
        return float(truth == "true")
    try:
        return float(str(cell).replace("_", "?") if isinstance(cell, str) else cell)
    except (ValueError, TypeError):
        raise ValueError(f"column {column['name']!r}: expected a number, got {cell!r}") from None


def is_missing(cell: object) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())
