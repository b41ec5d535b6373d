"""One or more numbers for one row of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.protocols import Batch, Batching, Columns, Inputs, Target
from trainer.task.fingerprint import fingerprint
from trainer.task.table import Table
from trainer.task.values import Values

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.draws import Draws


class TabularRegression:
    """Columns of numbers and categories in, V numbers out.

    Targets are standardized by the training split, and the loss is that of standardized values; metrics and
    answers are in the user's units. An exported graph gives standardized values, and `values.json` beside it the
    way back.

    Args:
        max_categories: Categories of a column that get a feature of their own, the most frequent ones.
    """

    monitor = "r2"
    target: Target = "values"
    inputs: Inputs = "features"
    script = ("tables", "values")

    def __init__(self, *, max_categories: int) -> None:
        self.table = Table(max_categories)
        self.values = Values()

    def columns(self) -> tuple[str, ...]:
        return ("features", "value")

    def reads(self) -> tuple[str, ...]:
        return ("features",)

    def fingerprint(self) -> str:
        return fingerprint("tabular_regression/1", *self.table.key())

    def fit(self, train: Dataset) -> None:
        """Takes mean and spread of the values, and what the columns hold, from the training split.

        Raises:
            DataError: A value is the same in every row or too large, or the columns cannot be used.
        """
        self.values.learn(train)
        self.table.learn(train)

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `features`, `value` (standardized), `missing`, `unknown` (see `Table.encode`).

        Raises:
            RowError: A row has another number of values than training, one is not finite, or a cell does not fit.
        """
        return {**self.encode_inputs(rows), "value": self.values.encode(rows["value"])}

    @property
    def numeric(self) -> dict[str, bool]:
        """The columns that are read, and whether each is one of numbers."""
        return self.table.numeric

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        return self.table.encode(rows["features"])

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        return self.table.check(encoded)

    def lengths(self, encoded: Dataset) -> None:
        return None

    def collate(self, rows: Columns, draws: Draws, batching: Batching) -> Batch:
        target = self.values.target(rows["value"])
        return Batch(self.inputs_of(rows, batching), target, len(target), tuple(draws.ids))

    def inputs_of(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        return self.table.inputs(encoded)

    def facts(self) -> dict[str, Any]:
        return {**self.table.facts(), **self.values.facts()}

    def metrics(self) -> MetricCollection:
        return self.values.metrics()

    def answers(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        return self.values.answers(output)

    def axes(self) -> dict[str, dict[int, str]]:
        return self.table.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.table.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self.table.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        return {**self.values.artifact_files(), **self.table.artifact_files()}

    def state_dict(self) -> dict[str, Any]:
        return {**self.values.state_dict(), **self.table.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values.load_state_dict(state)
        self.table.load_state_dict(state)
