"""What the tasks over tables share: named columns of numbers and categories as one vector of features."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.errors import ConfigError, DataError, RowError, explain
from trainer.protocols import Columns
from trainer.task.moments import Moments

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

logger = logging.getLogger(__name__)

_MANY_UNKNOWN = 0.05
"""Above this share of categories, a run starts with a warning."""


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
        return [self.name] * (self.std > 0) + [f"{self.name} is missing"] * self.missing

    def encode(self, cells: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """The features of cells, float32 (N, 0 to 2), and which cells hold a category unknown to training: none."""
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
        if self.constant:
            return []
        known = [f"{self.name}={category}" for category in self.categories]
        return [*known, *[f"{self.name} is missing"] * self.missing, f"{self.name} is other"]

    def encode(self, cells: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """The features of cells, float32 (N, slots), and which cells hold a category that has no slot of its own."""
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


class Table:
    """Rows of named columns as features, by what the training split holds.

    A column is one of numbers or one of categories as its type says. Numbers are standardized by mean and standard
    deviation of training, a missing one is 0, the mean, and where training has missing ones a further feature says so.
    Categories are one-hot, see `Category`. What is the same in every row of training is left out.

    Args:
        max_categories: Categories of a column that get a feature of their own, the most frequent ones.

    Raises:
        ConfigError: It is below 1.
    """

    def __init__(self, max_categories: int) -> None:
        if max_categories < 1:
            raise ConfigError(explain("max_categories", "must be at least 1", value=max_categories))
        self.max_categories = max_categories
        self.columns: list[Column] = []

    def key(self) -> tuple[Any, ...]:
        """What `learn` and `encode` depend on beside the data; JSON."""
        return (self.max_categories,)

    @property
    def features(self) -> list[str]:
        """The names of the features, in their order."""
        return [feature for column in self.columns for feature in column.features()]

    @property
    def numeric(self) -> dict[str, bool]:
        """The columns by name, and whether each is one of numbers."""
        return {column.name: isinstance(column, Number) for column in self.columns}

    def learn(self, train: Dataset) -> None:
        """Takes the columns from the column `features` of the training split.

        Infinite numbers are passed over: `encode` says where they are.

        Raises:
            DataError: A column holds neither numbers nor texts, or nothing in training varies.
        """
        rows = train.with_format("arrow").select_columns("features")
        names = {field.name: _is_number(field.name, field.type) for field in rows[:1]["features"].type}
        numbers, missing = Moments(sum(names.values())), Counter[str]()
        counters = {name: Counter[str]() for name, is_number in names.items() if not is_number}
        for batch in rows.iter(10_000):
            cells = dict(zip(names, batch["features"].combine_chunks().flatten(), strict=True))
            missing.update({name: _count_missing(column) for name, column in cells.items()})
            numeric = [_as_numbers(column) for name, column in cells.items() if names[name]]
            if numeric:
                numbers.add(np.stack(numeric, axis=1))
            for name, counter in counters.items():
                counter.update(cell for cell in cells[name].to_pylist() if cell is not None)
        moments = iter(zip(numbers.mean.tolist(), numbers.std.tolist(), numbers.high.tolist(), strict=True))
        self.columns = [
            _number(name, *next(moments), missing[name], len(train))
            if is_number
            else _category(name, counters[name], missing[name], self.max_categories)
            for name, is_number in names.items()
        ]
        if not self.features:
            problem = "every column is the same in all rows of training"
            raise DataError(explain("features", problem, value=list(names)))

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Columns `features` (float32 (F,)), `missing` (cells without a value), `unknown` (categories without a slot).

        Raises:
            RowError: A number is no finite number, a category no text, or there is no such column.
        """
        lacking = [column.name for column in self.columns if column.name not in rows[0]]
        if lacking:
            raise RowError(0, "features", explain("features", "lack columns that training has", value=lacking))
        cells = [[row[column.name] for row in rows] for column in self.columns]
        blocks = [column.encode(values) for column, values in zip(self.columns, cells, strict=True)]
        missing = [[value is None or value != value for value in values] for values in cells]
        return {
            "features": list(np.concatenate([features for features, _ in blocks], axis=1)),
            "missing": np.array(missing).sum(axis=0).tolist(),
            "unknown": np.array([unknown for _, unknown in blocks]).sum(axis=0).tolist(),
        }

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        """Logs the size of each split and what it lacks; returns a warning where many of its categories are unknown."""
        warnings = []
        constant = [column.name for column in self.columns if not column.features()]
        if constant:
            logger.info("features: left out, the same in all rows of training: %s", ", ".join(constant))
        num_categories = sum(isinstance(column, Category) for column in self.columns)
        for split, rows in encoded.items():
            columns = rows.with_format("numpy")
            missing = columns["missing"][:].sum() / (len(rows) * len(self.columns))
            unknown = columns["unknown"][:].sum() / max(1, len(rows) * num_categories)
            told = (
                f"{split}: {len(rows)} rows, {len(self.columns)} columns as {len(self.features)} features, "
                f"{100 * missing:.1f} % of cells missing, {100 * unknown:.1f} % of categories unknown"
            )
            if unknown > _MANY_UNKNOWN:
                warnings.append(f"{told}; raise task.max_categories, or leave such columns out")
            else:
                logger.info(told)
        return warnings

    @staticmethod
    def inputs(rows: Columns) -> dict[str, Tensor]:
        """The model's inputs for encoded rows: `features`, float32 (B, F)."""
        return {"features": torch.from_numpy(np.stack(rows["features"]))}

    def facts(self) -> dict[str, Any]:
        return {"num_features": len(self.features)}

    def axes(self) -> dict[str, dict[int, str]]:
        return {"features": {0: "batch"}}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return {}

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Random features of mean 0 and standard deviation 1."""
        shape = (sizes["batch"], len(self.features))
        return {"features": torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))}

    def artifact_files(self) -> dict[str, str]:
        """`table.json`: the columns, and the names of the graph's features in their order."""
        content = {**self.state_dict(), "features": self.features}
        return {"table.json": json.dumps(content, ensure_ascii=False, indent=1) + "\n"}

    def state_dict(self) -> dict[str, Any]:
        return {"columns": [{"kind": column.kind, **asdict(column)} for column in self.columns]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        kinds: dict[str, type[Column]] = {kind.kind: kind for kind in (Number, Category)}
        self.columns = [
            kinds[column["kind"]](**{name: value for name, value in column.items() if name != "kind"})
            for column in state["columns"]
        ]


def _is_number(name: str, kind: Any) -> bool:
    """Whether an Arrow type is one of numbers; a column without any value counts as one."""
    from pyarrow import types

    if types.is_string(kind) or types.is_large_string(kind):
        return False
    if types.is_floating(kind) or types.is_integer(kind) or types.is_boolean(kind) or types.is_null(kind):
        return True
    raise DataError(explain("features", f"the column {name!r} must hold numbers or texts", value=str(kind)))


def _as_numbers(column: Any) -> np.ndarray:
    values: np.ndarray = column.cast("float64", safe=False).to_numpy(zero_copy_only=False)
    return values


def _count_missing(column: Any) -> int:
    """Cells without a value; NaN is none."""
    return int(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False).sum())


def _number(name: str, mean: float, std: float, high: float, missing: int, num_rows: int) -> Number:
    if not np.isfinite(std):
        raise DataError(explain("features", f"the column {name!r} is too large to be standardized", value=high))
    return Number(name, mean, std, 0 < missing < num_rows)


def _category(name: str, counter: Counter[str], missing: int, limit: int) -> Category:
    frequent = sorted(counter, key=lambda category: (-counter[category], category))[:limit]
    return Category(name, sorted(frequent), missing > 0, len(counter) + (missing > 0) < 2)


def _cell_error(position: int, name: str, problem: str, value: Any) -> RowError:
    return RowError(position, "features", explain(name, problem, value=value))
