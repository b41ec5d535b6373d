"""One label for one row of a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.protocols import Batch, Batching, Columns, Inputs, Target
from trainer.task.fingerprint import fingerprint
from trainer.task.label import Label
from trainer.task.table import Table

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.draws import Draws


class TabularClassification:
    """Columns of numbers and categories in, one of K classes out.

    Args:
        max_categories: Categories of a column that get a feature of their own, the most frequent ones.
    """

    monitor = "accuracy"
    target: Target = "class"
    inputs: Inputs = "features"
    script = ("tables", "classes")

    def __init__(self, *, max_categories: int) -> None:
        self.table = Table(max_categories)
        self.label = Label()

    def columns(self) -> tuple[str, ...]:
        return ("features", "label")

    def reads(self) -> tuple[str, ...]:
        return ("features",)

    def fingerprint(self) -> str:
        return fingerprint("tabular_classification/1", *self.table.key())

    def fit(self, train: Dataset) -> None:
        """Takes the labels and their counts, and what the columns hold, from the training split.

        Raises:
            DataError: There are fewer than two labels, or the columns cannot be used.
        """
        self.label.learn(train)
        self.table.learn(train)

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `features`, `label` (class), `missing`, `unknown` (see `Table.encode`).

        Raises:
            RowError: A label was never seen in training, or a cell does not fit its column.
        """
        return {**self.encode_inputs(rows), "label": self.label.encode(rows["label"])}

    @property
    def numeric(self) -> dict[str, bool]:
        """The columns that are read, and whether each is one of numbers."""
        return self.table.numeric

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        return self.table.encode(rows["features"])

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        self.label.tell(encoded)
        return self.table.check(encoded)

    def lengths(self, encoded: Dataset) -> None:
        return None

    def collate(self, rows: Columns, draws: Draws, batching: Batching) -> Batch:
        target = self.label.target(rows["label"])
        return Batch(self.inputs_of(rows, batching), target, len(target), tuple(draws.ids))

    def inputs_of(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        return self.table.inputs(encoded)

    def facts(self) -> dict[str, Any]:
        return {**self.table.facts(), **self.label.facts()}

    def metrics(self) -> MetricCollection:
        return self.label.metrics()

    def answers(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        return self.label.answers(output, top)

    def axes(self) -> dict[str, dict[int, str]]:
        return self.table.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.table.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self.table.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        return {**self.label.artifact_files(), **self.table.artifact_files()}

    def state_dict(self) -> dict[str, Any]:
        return {**self.label.state_dict(), **self.table.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.label.load_state_dict(state)
        self.table.load_state_dict(state)
