"""Reads rows of a table.

Usage:
    python predict.py '{"age": 40, "town": "Bern"}'
    python predict.py rows.csv rows.jsonl    the columns by name
    python predict.py < rows.jsonl
"""

import json
from typing import Any

import numpy as np

from trainer.export.standalone.cells import as_text
from trainer.export.standalone.folder import Inputs, Row, read_json


def read_line(line: str) -> Row:
    row: Row = json.loads(line)
    return row


def encode(rows: list[Row]) -> Inputs:
    columns = read_json("table.json")["columns"]
    blocks = [
        (numbers if column["kind"] == "number" else categories)(column, [row[column["name"]] for row in rows])
        for column in columns
    ]
    return {"features": np.concatenate(blocks, axis=1)}


def numbers(column: Row, cells: list[Any]) -> np.ndarray:
    values = np.array([np.nan if is_missing(cell) else float(cell) for cell in cells])
    if np.isinf(values).any():
        raise ValueError(f"{column['name']} must be finite")
    missing = np.isnan(values)
    standardized = np.where(missing, 0.0, (values - column["mean"]) / (column["std"] or 1.0))
    found = [standardized] * (column["std"] > 0) + [missing] * column["missing"]
    return np.array(found, dtype=np.float32).reshape(-1, len(cells)).T


def categories(column: Row, cells: list[Any]) -> np.ndarray:
    """One-hot: the known categories, missing where training had such, others."""
    known, other = column["categories"], len(column["categories"]) + column["missing"]
    texts = [None if is_missing(cell) else as_text(cell) for cell in cells]
    slots = [len(known) if text is None else known.index(text) if text in known else other for text in texts]
    return np.eye(other + 1, 0 if column["constant"] else other + 1, dtype=np.float32)[slots]


def is_missing(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())
