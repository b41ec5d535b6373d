"""What the tasks over tables share: named columns of numbers and categories as one vector of features."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.errors import DataError, RowError, format_error, raise_if_any
from trainer.protocols import Batching, Columns
from trainer.ranges import at_least
from trainer.task.moments import Moments
from trainer.task.table_columns import Category, Column, Number, learnt_category, learnt_number

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

logger = logging.getLogger(__name__)

_MANY_UNKNOWN = 0.05
"""Above this share of categories, a run starts with a warning."""


class Table:
    """Rows of named columns as features, by what the training split holds.

    A column is one of numbers or one of categories as its type says. Numbers are standardized by mean and standard
    deviation of training, a missing one is 0, the mean, and where training has missing ones a further feature says so.
    Categories are one-hot, see `Category`. What is the same in every row of training is left out.

    Args:
        max_categories: Categories of a column that get a feature of their own, the most frequent ones.

    Attributes:
        columns: Those of the training split, in its order.

    Raises:
        ConfigError: It is below 1.
    """

    def __init__(self, max_categories: int) -> None:
        raise_if_any(at_least("max_categories", max_categories, 1))
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

    def learn(self, train: Dataset, roles: Sequence[str]) -> None:
        """Takes the columns from the column of structs, `roles`, of the training split.

        Infinite numbers are passed over: `encode` says where they are.

        Raises:
            DataError: A column holds neither numbers nor texts, or nothing in training varies.
        """
        (role,) = roles
        rows = train.with_format("arrow").select_columns(role)
        names = {field.name: _is_number(field.name, field.type) for field in rows[:1][role].type}
        numbers, missing = Moments(sum(names.values())), Counter[str]()
        counters = {name: Counter[str]() for name, is_number in names.items() if not is_number}
        for batch in rows.iter(10_000):
            cells = dict(zip(names, batch[role].combine_chunks().flatten(), strict=True))
            missing.update({name: _count_missing(column) for name, column in cells.items()})
            numeric = [_as_numbers(column) for name, column in cells.items() if names[name]]
            if numeric:
                numbers.add(np.stack(numeric, axis=1))
            for name, counter in counters.items():
                counter.update(cell for cell in cells[name].to_pylist() if cell is not None)
        moments = iter(zip(numbers.mean.tolist(), numbers.std.tolist(), numbers.high.tolist(), strict=True))
        self.columns = [
            learnt_number(name, *next(moments), missing[name], len(train))
            if is_number
            else learnt_category(name, counters[name], missing[name], self.max_categories)
            for name, is_number in names.items()
        ]
        if not self.features:
            problem = "every column is the same in all rows of training"
            raise DataError(format_error("features", problem, value=list(names)))

    def encode(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """Columns `features` (float32 (F,)), `missing` (cells without a value), `unknown` (categories without a slot).

        Raises:
            RowError: A number is no finite number, a category no text, or there is no such column.
        """
        lacking = [column.name for column in self.columns if column.name not in rows[0]]
        if lacking:
            raise RowError(0, "features", format_error("features", "lack columns that training has", value=lacking))
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
    def lengths(encoded: Dataset) -> None:
        return None

    @staticmethod
    def model_inputs(rows: Columns, batching: Batching) -> dict[str, Tensor]:
        """The model's inputs for encoded rows, in any layout: `features`, float32 (B, F)."""
        return {"features": torch.from_numpy(np.stack(rows["features"]))}

    def info_fields(self) -> dict[str, Any]:
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
    raise DataError(format_error("features", f"the column {name!r} must hold numbers or texts", value=str(kind)))


def _as_numbers(column: Any) -> np.ndarray:
    values: np.ndarray = column.cast("float64", safe=False).to_numpy(zero_copy_only=False)
    return values


def _count_missing(column: Any) -> int:
    """Cells without a value; NaN is none."""
    return int(column.is_null(nan_is_null=True).to_numpy(zero_copy_only=False).sum())
