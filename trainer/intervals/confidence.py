"""95 % intervals of the metrics of an evaluation, by the bootstrap over its rows, or by the jackknife.

A draw takes as many rows as there are, with replacement, and computes a metric from the rows that were drawn; the
interval goes from the 2.5 % to the 97.5 % quantile of 1,000 draws (the percentile bootstrap: Efron 1979, "Bootstrap
methods"; Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13). The rows of a draw depend only on
the number of the draw and the number of rows, so the difference of two models on the same rows is paired.

If there are more than 16,384 rows, they are divided at random into that many groups, and groups are drawn instead: this
adds an error of about 0.6 % to the width of an interval, and neither work nor memory grows with the rows.

Averages over classes, such as `macro_f1`, have the interval of the jackknife (Efron and Stein 1981, "The jackknife
estimate of variance"): draws lack a third of the classes that have one row, so percentiles are too narrow and too low.
The jackknife computes the metric without each row, or without each of 1,000 groups of rows (Busing, Meijer and van der
Leeden 1999, "Delete-m jackknife for unequal m"), and takes Student's t quantiles; its variance is at least the true one
on average. All intervals are about other rows of the same number: no interval shows that classes with few rows lower
the value of a macro F1 itself.

A metric of a class that the user names (`metrics=[{_target_: ...}]`) is computed again on the rows of each draw if the
rows are few (`MAX_VALUES`) and the predictions contain what it gets. The ranks behind `mrr` and `recall_at_1` are those
among all rows: a draw does not change the rows that are searched. Each metric without an interval has a reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from trainer.documents import undefined_reason
from trainer.intervals.class_estimates import ClassAverage, Share
from trainer.intervals.estimates import estimate_again, make_estimates, metric_arguments
from trainer.intervals.resampling import NUM_DRAWS, Estimate, Units
from trainer.layout import Document
from trainer.predictions import read_predictions
from trainer.report.metric_names import metric_range
from trainer.report.sweep_table import t_quantile

if TYPE_CHECKING:
    import pyarrow
    from torchmetrics import Metric

Interval = tuple[float, float]

_COLUMNS = [
    *("target", "prediction", "probabilities", "top_classes"),
    *("loss", "num_targets", "num_right", "rank", "closeness"),
]
_LEVELS = (0.025, 0.975)
_TOLERANCE = 1e-4

MAX_VALUES: Final = 2**15
"""The largest number of rows times columns for which a metric is computed again on each draw."""

_TOO_FEW_ROWS: Final = "an interval needs at least 2 rows"
_WITHOUT: Final = {"max_error": "the largest error of drawn rows says nothing about the errors of other rows"}
"""Metrics without an interval, with the reason."""


class Intervals(NamedTuple):
    """The intervals of an evaluation.

    Attributes:
        by_name: The interval of each metric that has one, by name.
        missing: The reason why another one has none, by name.
    """

    by_name: dict[str, Interval]
    missing: dict[str, str]


def read_intervals(
    path: Path, values: Mapping[str, float], metrics: Mapping[str, Metric] = MappingProxyType({})
) -> Intervals:
    """Return the intervals of the metrics of an evaluation from the file of its predictions.

    Raises:
        CheckpointError: The file cannot be used.
    """
    table, about = read_predictions(path, _COLUMNS)
    return metric_intervals(table, about, values, metrics)


def metric_intervals(
    table: pyarrow.Table,
    about: Document,
    values: Mapping[str, float],
    metrics: Mapping[str, Metric] = MappingProxyType({}),
) -> Intervals:
    """Return the intervals of the metrics of an evaluation.

    Args:
        table: The predictions of the evaluation, see `trainer.predictions`.
        about: Their metadata.
        values: The value of each metric that the evaluation reported.
        metrics: Fresh metrics of classes that the user has named, by name.
    """
    units = Units.for_rows(len(table))
    missing = {name: undefined_reason(name) for name, value in values.items() if not isfinite(value)}
    if units.count < 2:
        return Intervals({}, dict.fromkeys(values, _TOO_FEW_ROWS) | missing)
    if "loss" in values and table["loss"].null_count:
        missing.setdefault("loss", "it is computed from a whole batch or from the inputs, so no row has a loss")
    missing |= {name: _WITHOUT[name] for name in values if name in _WITHOUT and name not in missing}
    estimates = fitting_estimates(table, about, values, units)
    if own := {name: metric for name, metric in metrics.items() if name not in missing}:
        arguments = metric_arguments(table, about)
        if arguments is not None and units.are_rows and arguments[0].size <= MAX_VALUES:
            again = {name: estimate_again(metric, arguments) for name, metric in own.items()}
            estimates |= _select_fitting(again, values, units)
        elif arguments is not None:
            reason = f"it would be computed {NUM_DRAWS:,} times from more than {MAX_VALUES:,} values"
            missing |= dict.fromkeys(own, reason)
    unknown = [name for name in values if name not in estimates and name not in missing]
    missing |= dict.fromkeys(unknown, "the predictions do not contain what it is computed from")
    intervals, others = estimated_intervals({name: estimates[name] for name in values if name in estimates}, units)
    return Intervals(intervals, others | missing)


def estimated_intervals(estimates: Mapping[str, Estimate], units: Units) -> Intervals:
    """Return the intervals of estimates: by the jackknife of averages over classes, else by the bootstrap.

    If all draws are equal, they say nothing about other rows: if no answer was wrong, or none was right, a share of
    right answers gets the exact interval (Clopper and Pearson 1934) of the share of the rows in which all answers are
    right, or none is, and all other metrics have none.
    """
    if units.count < 2:
        return Intervals({}, dict.fromkeys(estimates, _TOO_FEW_ROWS))
    intervals, missing = {}, {}
    averages = {name: each for name, each in estimates.items() if isinstance(each, ClassAverage)}
    others = {name: each for name, each in estimates.items() if name not in averages}
    for name, average in averages.items():
        low, high = jackknife_interval(average, units, metric_range(name))
        if low < high:
            intervals[name] = (low, high)
        else:
            missing[name] = f"the value is {low:.6g} whichever row is left out"
    draws = draw_estimates(list(others.values()), units)
    for (name, estimate), column in zip(others.items(), draws.T, strict=True):
        interval = quantile_interval(column)
        if interval is None:
            missing[name] = "it is not defined in more than 5% of the draws of the rows"
        elif interval[0] < interval[1]:
            intervals[name] = interval
        elif isinstance(estimate, Share) and interval[0] in (0.0, 1.0):
            bound = _LEVELS[0] ** (1 / estimate.num_rows)
            intervals[name] = (bound, 1.0) if interval[0] else (0.0, 1 - bound)
        else:
            missing[name] = f"the value is {interval[0]:.6g} in all draws of the rows"
    return Intervals(intervals, missing)


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
    names = [name for name in first if name in second and not isinstance(first[name], ClassAverage)]
    draws = draw_estimates([second[name] for name in names], units)
    draws -= draw_estimates([first[name] for name in names], units)
    intervals = {name: quantile_interval(column) for name, column in zip(names, draws.T, strict=True)}
    for name in (name for name in first if name in second and name not in intervals):
        low, high = metric_range(name)
        intervals[name] = jackknife_interval(_difference(first[name], second[name]), units, (low - high, high - low))
    return {name: interval for name in first if (interval := intervals.get(name)) is not None}


def _difference(left: Estimate, right: Estimate) -> Estimate:
    def estimate(counts: np.ndarray) -> np.ndarray:
        difference: np.ndarray = right(counts) - left(counts)
        return difference

    return estimate


def fitting_estimates(
    table: pyarrow.Table, about: Document, values: Mapping[str, Any], units: Units
) -> dict[str, Estimate]:
    """Return the estimates of the metrics that give the values which the evaluation reported, by name."""
    if units.count < 2:
        return {}
    return _select_fitting(make_estimates(table, about, units, list(values)), values, units)


def _select_fitting(estimates: Mapping[str, Estimate], values: Mapping[str, Any], units: Units) -> dict[str, Estimate]:
    once = np.ones((1, units.count))
    with np.errstate(all="ignore"):
        return {
            name: estimate
            for name, estimate in estimates.items()
            if name in values
            and math.isclose(float(estimate(once)[0]), values[name], rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
        }


def draw_estimates(estimates: Sequence[Estimate], units: Units) -> np.ndarray:
    """Return the value of each estimate in each draw, (draws, estimates)."""
    with np.errstate(all="ignore"):
        chunks = [
            np.stack([estimate(counts) for estimate in estimates], axis=1) if estimates else np.empty((len(counts), 0))
            for counts in units.draws()
        ]
    return np.concatenate(chunks)


def jackknife_interval(estimate: Estimate, units: Units, limits: tuple[float, float]) -> Interval:
    """Return the interval of an estimate that is defined for all counts, by the jackknife, cut off at the limits.

    The two ends are equal if the estimate is the same without any of the groups of rows.
    """
    value = float(estimate(np.ones((1, units.count)))[0])
    chunks = [(estimate(counts), sizes) for counts, sizes in units.deletions()]
    without, sizes = (np.concatenate(each) for each in zip(*chunks, strict=True))
    if (without == value).all():
        return value, value
    shares = len(units.of_row) / sizes
    pseudovalues = shares * value - (shares - 1) * without
    mean = len(sizes) * value - ((1 - 1 / shares) * without).sum()
    error = math.sqrt(((pseudovalues - mean) ** 2 / (shares - 1)).mean())
    half = t_quantile(len(sizes) - 1) * error
    return max(value - half, limits[0]), min(value + half, limits[1])


def quantile_interval(draws: np.ndarray) -> Interval | None:
    """Return the 2.5 % and the 97.5 % quantile; None if the metric is not defined in more than 5 % of the draws."""
    defined = draws[np.isfinite(draws)]
    if len(defined) < 0.95 * len(draws):
        return None
    low, high = np.quantile(defined, _LEVELS)
    return float(low), float(high)
