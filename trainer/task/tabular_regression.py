"""Predict one or more numbers for rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.constraints import Count, validated
from trainer.protocols import Inputs, Target
from trainer.task.numeric import RegressionTarget
from trainer.task.table import Table, TableTask

if TYPE_CHECKING:
    from torch import Tensor


class TabularRegression(TableTask):
    """Predict V numbers for columns of numbers and categories.

    Targets are standardized by the training split, and the loss compares standardized values; metrics and predictions
    are in the user's units. An exported graph outputs standardized values, and `values.json` next to it has the means
    and standard deviations to convert them back.

    Args:
        max_categories: Categories of a column with a feature of their own, the most frequent ones.
    """

    monitor = "r2"
    monitors = ("r2", "mae", "rmse", "pearson", "spearman")
    target: Target = "values"
    inputs: Inputs = "features"
    script = ("tables", "values")

    @validated()
    def __init__(self, *, max_categories: Count) -> None:
        self.table = Table(max_categories)
        self.regression_target = RegressionTarget()
        super().__init__("tabular_regression/1", ("features",), self.table, self.regression_target)

    def in_units(self, values: Tensor) -> Tensor:
        """Return outputs or targets (B, V) in the user's units."""
        return self.regression_target.in_units(values)
