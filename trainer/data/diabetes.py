"""Progression of diabetes within a year by 10 measurements (scikit-learn's copy of the data of Efron et al.)."""

from __future__ import annotations

from trainer.data.scikit_learn import Rows, ScikitLearnSource, read_table


class Diabetes(ScikitLearnSource):
    """442 rows: columns `features` (10 numbers, in clinical units), `value` (disease progression) and `row`.

    Splits of 80%, 10% and 10% depend on the features only.

    Source: B. Efron, T. Hastie, I. Johnstone and R. Tibshirani, Least Angle Regression, 2004;
    https://arxiv.org/abs/math/0406456.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        super().__init__("diabetes", _read_rows)


def _read_rows() -> Rows:
    from sklearn.datasets import load_diabetes

    for features, target in read_table(load_diabetes(scaled=False)):
        yield {"features": features, "value": [float(target)]}
