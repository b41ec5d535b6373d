"""Malignant and benign tumors by 30 measurements of cell nuclei (scikit-learn's copy of the Wisconsin data)."""

from __future__ import annotations

from trainer.data.scikit_learn import Rows, ScikitLearnSource, read_table


class BreastCancer(ScikitLearnSource):
    """569 rows: columns `features` (30 numbers), `label` (`malignant` or `benign`) and `row`.

    Splits of 80%, 10% and 10% depend on the features only.

    Source: W. N. Street, W. H. Wolberg and O. L. Mangasarian, Nuclear feature extraction for breast tumor diagnosis,
    1993; https://archive.ics.uci.edu/dataset/17.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self) -> None:
        super().__init__("breast_cancer", _read_rows)


def _read_rows() -> Rows:
    from sklearn.datasets import load_breast_cancer

    bunch = load_breast_cancer()
    for features, target in read_table(bunch):
        yield {"features": features, "label": str(bunch.target_names[target])}
