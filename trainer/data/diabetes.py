"""How diabetes went on in a year, from 10 measurements (scikit-learn's copy of the data of least angle regression)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from trainer.data import bundled
from trainer.data.rows import place

if TYPE_CHECKING:
    from datasets import Dataset


class Diabetes:
    """442 rows: columns `features` (10 numbers, in the units of the clinic), `value` (disease progression) and `row`.

    Splits of 80, 10 and 10 % follow from the features alone.

    Source: B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, Least Angle Regression, 2004;
    https://arxiv.org/abs/math/0406456.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        bundled.check_installed()

    @cached_property
    def fingerprint(self) -> str:
        """Of all values."""
        return bundled.fingerprint_of("diabetes", _rows)

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits, in memory."""
        return bundled.load(_rows(), roles)

    def where(self, split: str, row: int) -> str:
        """`diabetes, row 18`."""
        return f"diabetes, row {place(row)[1]}"

    def column(self, role: str) -> str:
        """`the column value of data=diabetes`: its columns have no names of the user's."""
        return f"the column {role} of data=diabetes"


def _rows() -> bundled.Rows:
    from sklearn.datasets import load_diabetes

    for features, target in bundled.table(load_diabetes(scaled=False)):
        yield {"features": features, "value": [float(target)]}
