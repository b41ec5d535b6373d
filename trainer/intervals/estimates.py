"""The metrics of an evaluation as functions of counts: how often each row counts.

A metric is a function of sums over rows, such as the right answers or the squares of the errors, in which each row
counts as often as it was drawn; so a draw of a bootstrap (see `trainer.intervals.confidence`) costs a product of a
matrix, not a metric over outputs. Metrics of the order of all rows are in `trainer.intervals.rank_estimates`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.intervals.class_estimates import (
    CLASS_ESTIMATES,
    Share,
    have_one_length,
    read_indices,
    read_numbers,
    rows_of_entries,
)
from trainer.intervals.rank_estimates import MEDIAN_ERROR, SPEARMAN, estimate_ranked
from trainer.intervals.resampling import Estimate, Units
from trainer.layout import Document

if TYPE_CHECKING:
    import pyarrow
    from torchmetrics import Metric

LOWER_IS_BETTER: Final = frozenset(
    {"loss", "perplexity", "mae", "rmse", "alignment", "uniformity", "mape", "median_absolute_error"}
)
"""The metrics here that are better if they are lower; all others are better if they are higher."""


def make_estimates(
    table: pyarrow.Table, about: Document, units: Units, names: Collection[str] = (), *, is_part: bool = False
) -> dict[str, Estimate]:
    """Return the estimates of all metrics that a kind of predictions may have, by name.

    Args:
        table: The predictions, see `trainer.predictions`.
        about: Their metadata.
        units: The units of a draw.
        names: Metrics to include that depend on a number, such as `top_20_accuracy`.
        is_part: The rows are a part of the split: metrics of all pairs of rows are left out, and labels that do not
            occur in it do not count.
    """
    estimates: dict[str, Estimate] = {}
    num_targets = table["num_targets"].to_numpy().astype(np.float64)
    if not table["loss"].null_count:
        loss = table["loss"].to_numpy().astype(np.float64)
        estimates["loss"] = _mean(units, loss * num_targets, num_targets)
    kind = about["kind"]
    if kind in ("tags", "tokens"):
        estimates["accuracy"] = Share.of(units, table["num_right"].to_numpy().astype(np.float64), num_targets)
    if kind == "tokens" and "loss" in estimates:
        mean_loss = estimates["loss"]
        estimates["perplexity"] = lambda counts: np.exp(mean_loss(counts))
    if kind in ("class", "labels", "tags", "spans") and not table["target"].null_count:
        estimates |= CLASS_ESTIMATES[kind](table, about, units, names, is_part)
    elif (
        kind in ("values", "similarity")
        and not table["target"].null_count
        and have_one_length([table["target"], table["prediction"]])
    ):
        estimates |= _number_estimates(read_numbers(table["prediction"]), read_numbers(table["target"]), units)
    if "rank" in table.column_names and not table["rank"].null_count:
        ranks, ones = table["rank"].to_numpy(), np.ones(len(table))
        estimates["mrr"] = _mean(units, 1 / ranks, ones)
        estimates |= {f"recall_at_{at}": Share.of(units, ranks <= at, ones) for at in (1, 5)}
    if kind == "similarity":
        if not table["num_right"].null_count:
            estimates["triplet_accuracy"] = Share.of(units, table["num_right"].to_numpy(), np.ones(len(table)))
        if not is_part and "closeness" in table.column_names and not table["closeness"].null_count:
            estimates["uniformity"] = _uniformity(units, table["closeness"].to_numpy())
        # Of unit vectors, |a - p|^2 is 2 - 2 cos(a, p).
        distances = 2 - 2 * read_numbers(table["prediction"])[:, 0]
        estimates["alignment"] = _mean(units, distances, np.ones(len(distances)))
    return estimates


def _mean(units: Units, values: np.ndarray, weights: np.ndarray) -> Estimate:
    sums = units.sums(values, weights)

    def estimate(counts: np.ndarray) -> np.ndarray:
        value, weight = (counts @ sums).T
        mean: np.ndarray = value / weight
        return mean

    return estimate


def _uniformity(units: Units, closeness: np.ndarray) -> Estimate:
    """Return the log of the mean over all pairs, from the mean over the pairs of each row, to first order.

    Drawn pairs would contain pairs of a row with itself, which no evaluation has. A mean of pairs is twice the mean of
    its rows' parts: Hoeffding 1948, "A class of statistics with asymptotically normal distribution".
    """
    mean = closeness.mean()
    sums = units.sums(closeness - mean)[:, 0] * 2 / len(closeness)

    def estimate(counts: np.ndarray) -> np.ndarray:
        drawn: np.ndarray = np.log(mean + counts @ sums)
        return drawn

    return estimate


def target_estimates(table: pyarrow.Table, about: Document, units: Units) -> list[dict[str, Estimate]]:
    """Return the estimates of each numeric target by name; none for other kinds of predictions."""
    if about["kind"] != "values":
        return []
    columns = (read_numbers(table[name]).T for name in ("prediction", "target"))
    names = ("mae", "rmse", "r2", "pearson", "spearman")
    each = (_number_estimates(p[:, None], t[:, None], units) for p, t in zip(*columns, strict=True))
    return [{name: estimates[name] for name in names} for estimates in each]


def metric_arguments(table: pyarrow.Table, about: Document) -> list[np.ndarray] | None:
    """Return what a metric of a class (`metrics=[{_target_: ...}]`) gets for all rows; None if it is not kept."""
    kind = about["kind"]
    if kind == "values":
        columns = [read_numbers(table[name]) for name in ("prediction", "target")]
        return [column[:, 0] if column.shape[1] == 1 else column for column in columns]
    if kind not in ("class", "labels") or table["probabilities"].null_count or table["target"].null_count:
        return None
    if table["top_classes"].null_count < len(table):
        return None
    target, _, names = read_indices(table, about)
    if kind == "labels":
        classes, target = target, np.zeros((len(table), len(names)), dtype=np.int64)
        target[rows_of_entries(table["target"]), classes] = 1
    return [read_numbers(table["probabilities"]).astype(np.float32), target]


def estimate_again(metric: Metric, arguments: Sequence[np.ndarray]) -> Estimate:
    """Return a metric as a function of counts of rows, for which it is computed on the rows of each draw."""
    import torch

    columns = [torch.from_numpy(column) for column in arguments]

    def of_rows(drawn: np.ndarray) -> float:
        rows = torch.from_numpy(np.repeat(np.arange(len(drawn)), drawn.astype(np.int64)))
        metric.reset()
        try:
            metric.update(*(column[rows] for column in columns))
            return float(metric.compute())
        except (ValueError, RuntimeError):  # it is not defined for these rows, such as rows of one class
            return float("nan")

    def estimate(counts: np.ndarray) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.array([of_rows(drawn) for drawn in counts])

    return estimate


# Numbers


def _explained(residual: np.ndarray, squares: np.ndarray, of_mean: np.ndarray) -> np.ndarray:
    """Return 1 - residual / variance of the targets; if they are equal, 1 without a residual, else 0, as the metric.

    The variance is the difference of two sums, of equal targets a rounding error.
    """
    total = squares - of_mean
    is_constant = total <= 1e-9 * squares
    return np.where(is_constant, residual <= 1e-9 * squares, 1 - residual / np.where(is_constant, 1, total))


def _number_estimates(predicted: np.ndarray, target: np.ndarray, units: Units) -> dict[str, Estimate]:
    """Return the estimates of predictions and targets (N, V); each metric is the mean of its V values."""
    # Sums of squares keep their digits if the columns have a mean of about 0, and no metric depends on the mean.
    center = target.mean(axis=0)
    columns = list(zip((predicted - center).T, (target - center).T, strict=True))
    ones = np.ones(len(target))
    sums = [units.sums(ones, abs(t - p), (t - p) ** 2, t, t**2, p, p**2, p * t) for p, t in columns]

    def mean_of(statistic: Callable[..., np.ndarray]) -> Estimate:
        return lambda counts: np.mean([statistic(*(counts @ each).T) for each in sums], axis=0)

    estimates = {
        "explained_variance": mean_of(
            lambda n, error, square, t, tt, p, *_: _explained(square - (p - t) ** 2 / n, tt, t**2 / n)
        ),
        "mae": mean_of(lambda n, error, *_: error / n),
        "rmse": mean_of(lambda n, error, square, *_: np.sqrt(square / n)),
        "r2": mean_of(lambda n, error, square, t, tt, *_: _explained(square, tt, t**2 / n)),
        "pearson": mean_of(
            lambda n, error, square, t, tt, p, pp, pt: (
                (pt - p * t / n) / np.sqrt((pp - p**2 / n).clip(0) * (tt - t**2 / n).clip(0))
            )
        ),
    }
    with np.errstate(over="ignore"):
        relative = (abs(predicted - target) / abs(target).clip(np.finfo(np.float64).eps)).mean(axis=1)
    estimates["mape"] = _mean(units, relative, ones)
    estimates["spearman"] = estimate_ranked(SPEARMAN, predicted, target, units)
    estimates["median_absolute_error"] = estimate_ranked(MEDIAN_ERROR, predicted, target, units)
    return estimates
