"""Handwritten digits of 8 by 8 pixels (scikit-learn's copy of the UCI test set)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from trainer.data import bundled
from trainer.data.images import png
from trainer.data.rows import place

if TYPE_CHECKING:
    from datasets import Dataset


class Digits:
    """1,797 rows: columns `image` (8 by 8 grey pixels, a PNG), `features` (the 64 of them, 0 to 16), `label` and `row`.

    Splits of 80, 10 and 10 % follow from the pixels alone.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998;
    https://archive.ics.uci.edu/dataset/80.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        bundled.check_installed()

    @cached_property
    def fingerprint(self) -> str:
        """Of all values."""
        return bundled.fingerprint_of("digits", _rows)

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits, in memory."""
        return bundled.load(_rows(), roles)

    def where(self, split: str, row: int) -> str:
        """`digits, row 18`."""
        return f"digits, row {place(row)[1]}"

    def column(self, role: str) -> str:
        """`the column label of data=digits`: its columns have no names of the user's."""
        return f"the column {role} of data=digits"


def _rows() -> bundled.Rows:
    from sklearn.datasets import load_digits

    for features, target in bundled.table(load_digits()):
        pixels = np.array([round(shade * 255 / 16) for shade in features.values()], dtype=np.uint8).reshape(8, 8)
        yield {"image": png(pixels), "features": features, "label": str(target)}
