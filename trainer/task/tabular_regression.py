"""One or more numbers for one row of a table."""

from __future__ import annotations

from trainer.protocols import Inputs, Target
from trainer.task.supervised import Supervised
from trainer.task.table import Table
from trainer.task.values import Values


class TabularRegression(Supervised):
    """Columns of numbers and categories in, V numbers out.

    Targets are standardized by the training split, and the loss is that of standardized values; metrics and
    answers are in the user's units. An exported graph gives standardized values, and `values.json` beside it the
    way back.

    Args:
        max_categories: Categories of a column that get a feature of their own, the most frequent ones.
    """

    monitor = "r2"
    monitors = ("r2", "mae", "rmse", "pearson", "spearman")
    target: Target = "values"
    inputs: Inputs = "features"
    script = ("tables", "values")

    def __init__(self, *, max_categories: int) -> None:
        self.table = Table(max_categories)
        self.values = Values()
        super().__init__("tabular_regression/1", ("features",), self.table, self.values)

    @property
    def numeric(self) -> dict[str, bool]:
        """The columns that are read, and whether each is one of numbers."""
        return self.table.numeric
