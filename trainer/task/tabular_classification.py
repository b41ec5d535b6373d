"""Classify rows of a table."""

from __future__ import annotations

from trainer.constraints import Count, validated
from trainer.protocols import Inputs, Target
from trainer.task.class_targets import ClassTarget
from trainer.task.table import Table, TableTask


class TabularClassification(TableTask):
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
