"""The input encoder of tasks that read tables: named columns of numbers and categories as one vector of features."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from trainer.display import counted
from trainer.errors import DataError, RowError, format_error
from trainer.files.mapped import MappedRows, as_array, read_chunks
from trainer.protocols import Batching, Columns, EncodedColumns, Row, StateDict
from trainer.shapes import to_json
from trainer.task.class_names import boolean_spellings, warn_of_equal_names
from trainer.task.numeric import Moments
from trainer.task.supervised import InputFields, SupervisedTask

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset
    from torch import Tensor

logger = logging.getLogger(__name__)

_MAX_UNKNOWN = 0.05
"""A larger fraction of unknown categories is a warning."""

_MISSING = "(missing)"


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers: its standardized value, then 1 if it is missing.

    Attributes:
        name: The column's name.
        mean: The mean in the training split; it replaces missing numbers.
        std: The standard deviation in the training split; 0 for a constant column, which is no feature.
        missing: True if the column has rows with and rows without a value in training.
    """

    column_type: ClassVar[str] = "number"
    name: str
    mean: float
    std: float
    missing: bool

    def features(self) -> list[str]:
        """Return the names of its features, in their order."""
        return [self.name] * (self.std > 0) + [f"{self.name} is missing"] * self.missing

    def encode(self, cells: Sequence[object]) -> tuple[np.ndarray, np.ndarray]:
        """Return the features of cells, float32 (N, 0 to 2), and False for each cell: no category is unknown.

        Raises:
            RowError: A cell is not a number, or not finite.
        """
        for position, cell in enumerate(cells):
            if not isinstance(cell, int | float | None):
                raise _cell_error(position, self.name, "must be a number, as in training", cell)
        values = np.array(cells, dtype=np.float64)
        missing = np.isnan(values)
        with np.errstate(over="ignore"):
            standardized = ((values - self.mean) / (self.std or 1.0)).astype(np.float32)
        invalid = ~np.isfinite(standardized) & ~missing
        if invalid.any():
            position = int(invalid.argmax())
            problem = "must be finite, and within float32 once it is standardized"
            raise _cell_error(position, self.name, problem, cells[position])
        standardized[missing] = 0.0
        features = [standardized] * (self.std > 0) + [missing.astype(np.float32)] * self.missing
        return np.array(features, dtype=np.float32).reshape(-1, len(cells)).T, np.zeros(len(cells), dtype=bool)

    def describe(self, features: np.ndarray) -> str:
        """Return the cell of these features, (1 or 2,), as a text."""
        if self.missing and features[-1]:
            return _MISSING
        if not self.std > 0:
            return f"{self.mean:.6g}"
        # Further digits are the rounding of float32.
        return f"{round(self.mean + self.std * float(features[0]), 6 - math.floor(math.log10(self.std))) + 0.0:.6g}"


@dataclass(frozen=True)
class CategoryColumn:
    """A column of texts as one-hot features: 1 at the category, at "missing", or at "other".

    Attributes:
        name: The column's name.
        categories: The most frequent categories of the training split, sorted; all other categories are "other".
        missing: True if the column has missing values in training; otherwise a missing value is "other", too.
        constant: True if the column is the same in every row of training; then it is no feature.
    """

    column_type: ClassVar[str] = "category"
    name: str
    categories: list[str]
    missing: bool
    constant: bool

    def features(self) -> list[str]:
        """Return the names of its features, in their order."""
        if self.constant:
            return []
        known = [f"{self.name}={category}" for category in self.categories]
        return [*known, *[f"{self.name} is missing"] * self.missing, f"{self.name} is other"]

    def encode(self, cells: Sequence[object]) -> tuple[np.ndarray, np.ndarray]:
        """Return the features of cells, float32 (N, slots), and True for each cell whose category has no own slot.

        Raises:
            RowError: A cell is not a text.
        """
        other = len(self.categories) + self.missing
        slot_of: dict[object, int] = {category: slot for slot, category in enumerate(self.categories)}
        slot_of[None] = len(self.categories)  # the slot for missing values, else the slot for other categories
        for position, cell in enumerate(cells):
            if not isinstance(cell, str | None):
                raise _cell_error(position, self.name, "must be a text, as in training", cell)
        unseen = {cell for cell in cells if isinstance(cell, str)} - slot_of.keys()
        for cell, category in boolean_spellings(self.categories, unseen).items():
            slot_of[cell] = slot_of[category]
        slots = np.array([slot_of.get(cell, other) for cell in cells], dtype=np.int64)
        unknown = np.array([cell not in slot_of for cell in cells], dtype=bool)
        width = 0 if self.constant else other + 1
        return np.eye(other + 1, width, dtype=np.float32)[slots], unknown

    def describe(self, features: np.ndarray) -> str:
        """Return the cell of these features, (slots,), as a text."""
        return [*self.categories, *[_MISSING] * self.missing, "(other)"][int(features.argmax())]


Column = NumberColumn | CategoryColumn


def fit_number_column(name: str, mean: float, std: float, high: float, missing: int, num_rows: int) -> NumberColumn:
    """Return a column with this mean, standard deviation and maximum in training, `missing` in some of `num_rows`.

    Raises:
        DataError: The numbers are too large to be standardized.
    """
    if not np.isfinite(std):
        raise DataError(format_error("features", f"column {name!r} is too large to be standardized", value=high))
    return NumberColumn(name, mean, std, 0 < missing < num_rows)


def fit_category_column(name: str, counter: Counter[str], missing: int, limit: int) -> CategoryColumn:
    """Return a column with these counts of categories in training; at most `limit` of them get a feature."""
    frequent = sorted(counter, key=lambda category: (-counter[category], category))[:limit]
    return CategoryColumn(name, sorted(frequent), missing > 0, len(counter) + (missing > 0) < 2)


class Table:
    """Encodes rows of named columns as features learned from the training split.

    A column contains numbers or categories, as its type says. Numbers are standardized by mean and standard deviation
    of training, a missing number becomes 0, the mean, and if training has missing numbers a further feature marks them.
    Categories are one-hot, see `CategoryColumn`. Columns that are constant in training are left out.

    Args:
        max_categories: Categories of a column with a feature of their own, the most frequent ones.

    Attributes:
        columns: The columns of the training split, in its order.
    """

    def __init__(self, max_categories: int) -> None:
        self.max_categories = max_categories
        self.columns: list[Column] = []

    def fingerprint_parts(self) -> tuple[object, ...]:
        return (self.max_categories,)

    @property
    def features(self) -> list[str]:
        """The names of the features, in their order."""
        return [feature for column in self.columns for feature in column.features()]

    @property
    def numeric(self) -> dict[str, bool]:
        """True for a column of numbers, False for a column of categories, by column name."""
        return {column.name: isinstance(column, NumberColumn) for column in self.columns}

    def fit(self, train: Dataset, roles: Sequence[str]) -> None:
        """Learn the columns from the column of structs, `roles`, of the training split.

        Infinite numbers are skipped here, because `encode` reports their positions.

        Raises:
            DataError: A column contains neither numbers nor texts, or no column varies in training.
        """
        (role,) = roles
        rows = train.with_format("arrow").select_columns(role)
        is_number = {field.name: _is_number(field.name, field.type) for field in rows[:1][role].type}
        moments, missing = Moments(sum(is_number.values())), Counter[str]()
        counters = {name: Counter[str]() for name, numeric in is_number.items() if not numeric}
        for batch in rows.iter(10_000):
            cells = dict(zip(is_number, batch[role].combine_chunks().flatten(), strict=True))
            missing.update({name: _count_missing(column) for name, column in cells.items()})
            numbers = [_to_numbers(column) for name, column in cells.items() if is_number[name]]
            if numbers:
                moments.add(np.stack(numbers, axis=1))
            for name, counter in counters.items():
                counter.update(cell for cell in cells[name].to_pylist() if cell is not None)
        numbers_seen = iter(zip(moments.mean.tolist(), moments.std.tolist(), moments.high.tolist(), strict=True))
        self.columns = [
            fit_number_column(name, *next(numbers_seen), missing[name], len(train))
            if numeric
            else fit_category_column(name, counters[name], missing[name], self.max_categories)
            for name, numeric in is_number.items()
        ]
        if not self.features:
            problem = "every column is the same in all rows of training"
            raise DataError(format_error("features", problem, value=list(is_number)))

    def encode(self, rows: Sequence[Row]) -> EncodedColumns:
        """Return the columns `features` (float32 (F,)), `missing` (number of cells) and `unknown` (number of cells).

        Raises:
            RowError: A number is not finite, a cell has the wrong type, or a column is missing.
        """
        absent = [column.name for column in self.columns if column.name not in rows[0]]
        if absent:
            raise RowError(0, "features", format_error("features", "lack columns of the training split", value=absent))
        cells = [[row[column.name] for row in rows] for column in self.columns]
        blocks = [column.encode(values) for column, values in zip(self.columns, cells, strict=True)]
        missing = [[value is None or value != value for value in values] for values in cells]
        return {
            "features": list(np.concatenate([features for features, _ in blocks], axis=1)),
            "missing": np.array(missing).sum(axis=0).tolist(),
            "unknown": np.array([unknown for _, unknown in blocks]).sum(axis=0).tolist(),
        }

    def describe(self, features: np.ndarray) -> dict[str, str]:
        """Return the cells of an encoded row, float32 (F,), as texts by column name, without the constant columns."""
        cells, start = {}, 0
        for column in self.columns:
            width = len(column.features())
            if width:
                cells[column.name] = column.describe(features[start : start + width])
            start += width
        return cells

    def unknown_categories(self, row: Row) -> dict[str, str]:
        """Return the categories of a row that have no feature of their own, by column name."""
        categorical = [column for column in self.columns if isinstance(column, CategoryColumn)]
        return {column.name: row[column.name] for column in categorical if column.encode([row[column.name]])[1][0]}

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Log size and missing cells of each split; return a warning for each split with many unknown categories."""
        warnings = []
        constant = [column.name for column in self.columns if not column.features()]
        if constant:
            logger.info("features: ignored because they are constant in training: %s", ", ".join(constant))
        categorical = [column for column in self.columns if isinstance(column, CategoryColumn)]
        full = [column.name for column in categorical if len(column.categories) == self.max_categories]
        for column in categorical:
            warnings += warn_of_equal_names(column.categories, f"features: column {column.name!r}")
        for split, rows in encoded.items():
            cells = {"missing": len(rows) * len(self.columns), "unknown": max(1, len(rows) * len(categorical))}
            missing, unknown = (
                sum(as_array(chunk[name]).sum() for chunk in read_chunks(rows, name)) / count
                for name, count in cells.items()
            )
            summary = (
                f"{split}: {counted(len(rows), 'row')}, {counted(len(self.columns), 'column')} as "
                f"{counted(len(self.features), 'feature')}, "
                f"{100 * missing:.1f}% of cells missing, {100 * unknown:.1f}% of categories unknown"
            )
            if unknown > _MAX_UNKNOWN and full:
                limit = f"columns with {self.max_categories} categories or more: {', '.join(full)}"
                warnings.append(f"{summary}; {limit}. Raise task.max_categories, or leave these columns out")
            elif unknown > _MAX_UNKNOWN:
                largest = max(categorical, key=lambda column: len(column.categories)).name
                remedy = (
                    f"Leave out columns whose texts rarely repeat, such as {largest}, or write fewer different texts"
                )
                warnings.append(f"{summary}. {remedy}")
            else:
                logger.info(summary)
        return warnings

    @staticmethod
    def lengths(encoded: MappedRows) -> None:
        return None

    @staticmethod
    def model_inputs(rows: Columns, batching: Batching) -> dict[str, Tensor]:
        """Return the model's inputs for encoded rows, in any layout: `features`, float32 (B, F)."""
        return {"features": torch.from_numpy(np.stack(rows["features"]))}

    def info_fields(self) -> InputFields:
        return {"num_features": len(self.features)}

    def axes(self) -> dict[str, dict[int, str]]:
        return {"features": {0: "batch"}}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return {}

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Return random features of mean 0 and standard deviation 1."""
        shape = (sizes["batch"], len(self.features))
        return {"features": torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))}

    def artifact_files(self) -> dict[str, str]:
        """Return `table.json`: the columns, and the names of the graph's features in their order."""
        content = {**self.state_dict(), "features": self.features}
        return {"table.json": to_json(content, ensure_ascii=False, indent=1) + "\n"}

    def state_dict(self) -> StateDict:
        return {"columns": [{"kind": column.column_type, **asdict(column)} for column in self.columns]}

    def load_state_dict(self, state: StateDict) -> None:
        types: dict[str, type[Column]] = {column.column_type: column for column in (NumberColumn, CategoryColumn)}
        self.columns = [
            types[column["kind"]](**{name: value for name, value in column.items() if name != "kind"})
            for column in state["columns"]
        ]


class TableTask(SupervisedTask):
    """The methods of tasks that read tables.

    Attributes:
        table: Encodes the columns.
    """

    table: Table

    @property
    def numeric(self) -> dict[str, bool]:
        """True for a column of numbers, False for a column of categories, by column name."""
        return self.table.numeric

    def unknown_categories(self, features: Row) -> dict[str, str]:
        """Return the categories of a row that have no feature of their own, by column name."""
        return self.table.unknown_categories(features)


def _is_number(name: str, arrow_type: pyarrow.DataType) -> bool:
    """Return whether an Arrow type is numeric; a column without any value counts as numeric."""
    from pyarrow import types

    if types.is_string(arrow_type) or types.is_large_string(arrow_type):
        return False
    if any(is_type(arrow_type) for is_type in (types.is_floating, types.is_integer, types.is_boolean, types.is_null)):
        return True
    problem = f"column {name!r} must contain numbers or texts"
    raise DataError(format_error("features", problem, value=str(arrow_type)))


def _to_numbers(column: pyarrow.Array) -> np.ndarray:
    values: np.ndarray = column.cast("float64", safe=False).to_numpy(zero_copy_only=False)
    return values


def _count_missing(column: pyarrow.Array) -> int:
    """Count the cells without a value; NaN is no value."""
    return int(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False).sum())


def _cell_error(position: int, name: str, problem: str, value: object) -> RowError:
    return RowError(position, "features", format_error(name, problem, value=value))
