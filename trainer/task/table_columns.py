"""The columns of a table: how the cells of one become features, by what the training split holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from trainer.errors import DataError, RowError, format_error


@dataclass(frozen=True)
class Number:
    """A column of numbers: its standardized value, then 1 where it is missing.

    Attributes:
        name: Of the column.
        mean: Of the training split; stands for what is missing.
        std: Of the training split; 0 where it holds a single value, which then is no feature.
        missing: Whether training has rows with and rows without a value.
    """

    kind: ClassVar[str] = "number"
    name: str
    mean: float
    std: float
    missing: bool

    def features(self) -> list[str]:
        """The names of its features, in their order."""
        return [self.name] * (self.std > 0) + [f"{self.name} is missing"] * self.missing

    def encode(self, cells: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """The features of cells, float32 (N, 0 to 2), and which cells hold a category unknown to training: none.

        Raises:
            RowError: A cell is no number, or one that is not finite.
        """
        for position, cell in enumerate(cells):
            if not isinstance(cell, int | float | None):
                raise _cell_error(position, self.name, "must be a number, as in training", cell)
        values = np.array(cells, dtype=np.float64)
        missing = np.isnan(values)
        with np.errstate(over="ignore"):
            standardized = ((values - self.mean) / (self.std or 1.0)).astype(np.float32)
        wrong = ~np.isfinite(standardized) & ~missing
        if wrong.any():
            position = int(wrong.argmax())
            problem = "must be finite, and not beyond float32 once it is standardized"
            raise _cell_error(position, self.name, problem, cells[position])
        standardized[missing] = 0.0
        found = [standardized] * (self.std > 0) + [missing.astype(np.float32)] * self.missing
        return np.array(found, dtype=np.float32).reshape(-1, len(cells)).T, np.zeros(len(cells), dtype=bool)


@dataclass(frozen=True)
class Category:
    """A column of texts: 1 at its category, or at "missing", or at "other"; 0 elsewhere.

    Attributes:
        name: Of the column.
        categories: The most frequent ones of the training split, sorted; others, and those it never had, are "other".
        missing: Whether training has rows without one; else a missing one is "other", too.
        constant: Whether training has the same in every row: then it is no feature.
    """

    kind: ClassVar[str] = "category"
    name: str
    categories: list[str]
    missing: bool
    constant: bool

    def features(self) -> list[str]:
        """The names of its features, in their order."""
        if self.constant:
            return []
        known = [f"{self.name}={category}" for category in self.categories]
        return [*known, *[f"{self.name} is missing"] * self.missing, f"{self.name} is other"]

    def encode(self, cells: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """The features of cells, float32 (N, slots), and which cells hold a category that has no slot of its own.

        Raises:
            RowError: A cell is no text.
        """
        other = len(self.categories) + self.missing
        slot_of: dict[str | None, int] = {category: slot for slot, category in enumerate(self.categories)}
        slot_of[None] = len(self.categories)  # the slot of what is missing, else that of the others
        for position, cell in enumerate(cells):
            if not isinstance(cell, str | None):
                raise _cell_error(position, self.name, "must be a text, as in training", cell)
        slots = np.array([slot_of.get(cell, other) for cell in cells], dtype=np.int64)
        unknown = np.array([cell not in slot_of for cell in cells], dtype=bool)
        width = 0 if self.constant else other + 1
        return np.eye(other + 1, width, dtype=np.float32)[slots], unknown


Column = Number | Category


def learnt_number(name: str, mean: float, std: float, high: float, missing: int, num_rows: int) -> Number:
    """A column by mean, standard deviation and largest number in training, where `missing` of `num_rows` have none.

    Raises:
        DataError: The numbers are too large to be standardized.
    """
    if not np.isfinite(std):
        raise DataError(format_error("features", f"the column {name!r} is too large to be standardized", value=high))
    return Number(name, mean, std, 0 < missing < num_rows)


def learnt_category(name: str, counter: Counter[str], missing: int, limit: int) -> Category:
    """A column by how often it holds which category in training; at most `limit` of them get a feature."""
    frequent = sorted(counter, key=lambda category: (-counter[category], category))[:limit]
    return Category(name, sorted(frequent), missing > 0, len(counter) + (missing > 0) < 2)


def _cell_error(position: int, name: str, problem: str, value: Any) -> RowError:
    return RowError(position, "features", format_error(name, problem, value=value))
