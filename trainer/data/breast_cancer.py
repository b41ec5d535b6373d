"""Tumours as malignant or benign, from 30 measurements of cell nuclei (scikit-learn's copy of the Wisconsin data)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from trainer.data import bundled
from trainer.data.rows import place

if TYPE_CHECKING:
    from datasets import Dataset


class BreastCancer:
    """569 rows: columns `features` (30 numbers), `label` (`malignant` or `benign`) and `row`.

    Splits of 80, 10 and 10 % follow from the features alone.

    Source: W. N. Street, W. H. Wolberg and O. L. Mangasarian, Nuclear feature extraction for breast tumor diagnosis,
    1993; https://archive.ics.uci.edu/dataset/17.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        bundled.check_installed()

    @cached_property
    def fingerprint(self) -> str:
        """Of all values."""
        return bundled.fingerprint_of("breast_cancer", _rows)

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits, in memory."""
        return bundled.load(_rows(), roles)

    def where(self, split: str, row: int) -> str:
        """`breast_cancer, row 18`."""
        return f"breast_cancer, row {place(row)[1]}"

    def column(self, role: str) -> str:
        """`the column label of data=breast_cancer`: its columns have no names of the user's."""
        return f"the column {role} of data=breast_cancer"


def _rows() -> bundled.Rows:
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    for features, target in bundled.table(found):
        yield {"features": features, "label": str(found.target_names[target])}
