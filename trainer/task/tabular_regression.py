"""Predict one or more numbers for rows of a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.constraints import Count, validated
from trainer.protocols import Inputs, Row, Target
from trainer.task.numeric import RegressionTarget
from trainer.task.supervised import SupervisedTask
from trainer.task.table import Table

if TYPE_CHECKING:
    from torch import Tensor


class TabularRegression(SupervisedTask):
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

    @property
    def numeric(self) -> dict[str, bool]:
        """True for a column of numbers, False for a column of categories, by column name."""
        return self.table.numeric

    def unknown_categories(self, features: Row) -> dict[str, str]:
        """Return the categories of a row that have no feature of their own, by column name."""
        return self.table.unknown_categories(features)
