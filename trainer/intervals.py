"""95 % intervals of the metrics of an evaluation, by the bootstrap over its rows.

A draw takes as many rows as there are, with replacement, and computes a metric from the rows that were drawn; the
interval goes from the 2.5 % to the 97.5 % quantile of 1,000 draws (the percentile bootstrap: Efron 1979, "Bootstrap
methods"; Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13). The rows of a draw depend only on
the number of the draw and the number of rows, so the difference of two models on the same rows is paired.

If there are more than 16,384 rows, they are divided at random into that many groups, and groups are drawn instead: this
adds an error of about 0.6 % to the width of an interval, and neither work nor memory grows with the rows.

A metric without a form in `trainer.estimates` (of the user's own, or of all pairs of rows such as `uniformity`) has no
interval, and neither has a metric whose form does not give the value that the evaluation reported. The ranks behind
`mrr` and `recall_at_1` are those among all rows: a draw does not change the rows that are searched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.estimates import SHARES_OF_ROWS, Estimate, Units, make_estimates
from trainer.layout import Document
from trainer.predictions import read_predictions

if TYPE_CHECKING:
    import pyarrow

Interval = tuple[float, float]

_COLUMNS = ["target", "prediction", "probabilities", "top_classes", "loss", "num_targets", "num_right", "rank"]
_LEVELS = (0.025, 0.975)
_TOLERANCE = 1e-4


def read_intervals(path: Path, values: Mapping[str, float]) -> dict[str, Interval]:
    """Return the intervals of the metrics of an evaluation from the file of its predictions.

    Raises:
        CheckpointError: The file cannot be used.
    """
    table, about = read_predictions(path, _COLUMNS)
    return metric_intervals(table, about, values)


def metric_intervals(table: pyarrow.Table, about: Document, values: Mapping[str, float]) -> dict[str, Interval]:
    """Return the intervals of the metrics of an evaluation, as far as they have one.

    Args:
        table: The predictions of the evaluation, see `trainer.predictions`.
        about: Their metadata.
        values: The value of each metric that the evaluation reported.
    """
    units = Units.for_rows(len(table))
    estimates = fitting_estimates(table, about, values, units)
    return estimated_intervals(estimates, units)


def estimated_intervals(estimates: Mapping[str, Estimate], units: Units) -> dict[str, Interval]:
    """Return the intervals of estimates, as far as they have one.

    If all draws are equal, they say nothing about other rows: if no answer was wrong, or none was right, the share of
    right answers gets the exact interval (Clopper and Pearson 1934), and all other metrics have none.
    """
    draws = draw_estimates(list(estimates.values()), units) if units.count > 1 else np.empty((0, 0))
    intervals = {}
    for name, column in zip(estimates, draws.T, strict=False):
        interval = quantile_interval(column)
        if interval is not None and interval[0] == interval[1]:
            bound = _LEVELS[0] ** (1 / len(units.of_row))
            exact = {0.0: (0.0, 1 - bound), 1.0: (bound, 1.0)}
            interval = exact.get(interval[0]) if name in SHARES_OF_ROWS else None
        if interval is not None:
            intervals[name] = interval
    return intervals


def paired_intervals(
    left: tuple[pyarrow.Table, Mapping[str, Any]], right: tuple[pyarrow.Table, Mapping[str, Any]], about: Document
) -> dict[str, Interval]:
    """Return the interval of the difference of each metric, right - left, of two models on the same rows.

    Args:
        left: The predictions of a model, and the values that its evaluation reported.
        right: The same of the other model, row by row.
        about: The metadata of the predictions.
    """
    units = Units.for_rows(len(left[0]))
    first, second = (fitting_estimates(table, about, values, units) for table, values in (left, right))
    names = [name for name in first if name in second]
    draws = draw_estimates([second[name] for name in names], units)
    draws -= draw_estimates([first[name] for name in names], units)
    intervals = {name: quantile_interval(column) for name, column in zip(names, draws.T, strict=True)}
    return {name: interval for name, interval in intervals.items() if interval is not None}


def fitting_estimates(
    table: pyarrow.Table, about: Document, values: Mapping[str, Any], units: Units
) -> dict[str, Estimate]:
    """Return the estimates of the metrics that give the values which the evaluation reported, by name."""
    if units.count < 2:
        return {}
    once = np.ones((1, units.count))
    estimates = {name: estimate for name, estimate in make_estimates(table, about, units).items() if name in values}
    with np.errstate(all="ignore"):
        return {
            name: estimate
            for name, estimate in estimates.items()
            if math.isclose(float(estimate(once)[0]), values[name], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        }


def draw_estimates(estimates: Sequence[Estimate], units: Units) -> np.ndarray:
    """Return the value of each estimate in each draw, (draws, estimates)."""
    with np.errstate(all="ignore"):
        chunks = [
            np.stack([estimate(counts) for estimate in estimates], axis=1) if estimates else np.empty((len(counts), 0))
            for counts in units.draws()
        ]
    return np.concatenate(chunks)


def quantile_interval(draws: np.ndarray) -> Interval | None:
    """Return the 2.5 % and the 97.5 % quantile; None if the metric is not defined in more than 5 % of the draws."""
    defined = draws[np.isfinite(draws)]
    if len(defined) < 0.95 * len(draws):
        return None
    low, high = np.quantile(defined, _LEVELS)
    return float(low), float(high)
