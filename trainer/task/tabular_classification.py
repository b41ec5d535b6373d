"""One label for one row of a table."""

from __future__ import annotations

from trainer.protocols import Inputs, Target
from trainer.task.label import Label
from trainer.task.supervised import Supervised
from trainer.task.table import Table


class TabularClassification(Supervised):
    """Columns of numbers and categories in, one of K classes out.

    Args:
        max_categories: Categories of a column that get a feature of their own, the most frequent ones.
    """

    monitor = "accuracy"
    monitors = ("accuracy", "macro_f1")
    target: Target = "class"
    inputs: Inputs = "features"
    script = ("tables", "classes")

    def __init__(self, *, max_categories: int) -> None:
        self.table = Table(max_categories)
        self.label = Label()
        super().__init__("tabular_classification/1", ("features",), self.table, self.label)

    @property
    def numeric(self) -> dict[str, bool]:
        """The columns that are read, and whether each is one of numbers."""
        return self.table.numeric
