"""Handwritten digits of 8 by 8 pixels (scikit-learn's copy of the UCI test set)."""

from __future__ import annotations

import numpy as np

from trainer.data.cells import encode_png
from trainer.data.scikit_learn import Rows, ScikitLearnSource, read_table


class Digits(ScikitLearnSource):
    """1,797 rows: columns `image` (8 by 8 gray pixels, a PNG), `features` (the 64 pixels, 0 to 16), `label` and `row`.

    Splits of 80%, 10% and 10% depend on the pixels only.

    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, 1998;
    https://archive.ics.uci.edu/dataset/80.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        super().__init__("digits", _read_rows)


def _read_rows() -> Rows:
    from sklearn.datasets import load_digits

    for features, target in read_table(load_digits()):
        pixels = np.array([round(shade * 255 / 16) for shade in features.values()], dtype=np.uint8).reshape(8, 8)
        yield {"image": encode_png(pixels), "features": features, "label": str(target)}
