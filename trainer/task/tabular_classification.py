"""Classify rows of a table."""

from __future__ import annotations

from trainer.constraints import Count, validated
from trainer.protocols import Inputs, Row, Target
from trainer.task.class_targets import ClassTarget
from trainer.task.supervised import SupervisedTask
from trainer.task.table import Table


class TabularClassification(SupervisedTask):
    """Predict one of K classes for columns of numbers and categories.

    Args:
        max_categories: Categories of a column with a feature of their own, the most frequent ones.
    """

    monitor = "accuracy"
    monitors = ("accuracy", "macro_f1")
    target: Target = "class"
    inputs: Inputs = "features"
    script = ("tables", "classes")

    @validated()
    def __init__(self, *, max_categories: Count) -> None:
        self.table = Table(max_categories)
        self.class_target = ClassTarget()
        super().__init__("tabular_classification/1", ("features",), self.table, self.class_target)

    @property
    def numeric(self) -> dict[str, bool]:
        """True for a column of numbers, False for a column of categories, by column name."""
        return self.table.numeric

    def unknown_categories(self, features: Row) -> dict[str, str]:
        """Return the categories of a row that have no feature of their own, by column name."""
        return self.table.unknown_categories(features)
