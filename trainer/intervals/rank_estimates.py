"""The metrics that depend on the order of all rows, as functions of counts, see `trainer.intervals.estimates`.

The order of the rows is found once, and the counts of a draw give their ranks. If there are too many rows for that
(`MAX_ORDERED`), a draw is its first-order approximation: the value of all rows, plus the influence of each drawn row,
which is the derivative of the value by the weight of the row (the infinitesimal jackknife: Jaeckel 1972; Efron 1982,
"The jackknife, the bootstrap and other resampling plans", chapter 6). Its error shrinks with the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from trainer.intervals.resampling import Estimate, Units

MAX_ORDERED: Final = 2**17
"""Largest number of rows times columns whose order is followed through all draws."""

Influence = tuple[float, np.ndarray]
"""The value of all N rows, and its derivative by the weight of each row, (N,)."""


class RankStatistic(NamedTuple):
    """A statistic of two columns (N,), such as scores and labels.

    Attributes:
        estimate: Returns it as a function of counts.
        influence: Returns its value and the influence of each row.
    """

    estimate: Callable[[np.ndarray, np.ndarray], Estimate]
    influence: Callable[[np.ndarray, np.ndarray], Influence]


def estimate_ranked(
    statistic: RankStatistic, first: np.ndarray, second: np.ndarray, units: Units, *, skips_undefined: bool = False
) -> Estimate:
    """Return the mean of a statistic over columns (N, C), as a function of counts.

    Args:
        statistic: The statistic.
        first: Scores or predictions, (N, C).
        second: Labels or targets, (N, C).
        units: The units of a draw.
        skips_undefined: Leave columns out of the mean in which the statistic is not defined.
    """
    columns = list(zip(first.T, second.T, strict=True))
    if not (units.are_rows and first.size <= MAX_ORDERED):
        return _first_order(statistic, columns, units, skips_undefined=skips_undefined)

    @cache
    def estimates() -> list[Estimate]:
        return [statistic.estimate(*column) for column in columns]

    def estimate(counts: np.ndarray) -> np.ndarray:
        values = np.stack([each(counts) for each in estimates()])
        used = np.isfinite(values) if skips_undefined else np.ones(values.shape, dtype=bool)
        mean: np.ndarray = np.where(used, values, 0).sum(axis=0) / used.sum(axis=0)
        return mean

    return estimate


def _first_order(
    statistic: RankStatistic, columns: Sequence[tuple[np.ndarray, np.ndarray]], units: Units, *, skips_undefined: bool
) -> Estimate:
    @cache  # not before it is asked for: most estimates never are
    def sums() -> tuple[float, np.ndarray]:
        total, influence, number = 0.0, np.zeros(len(columns[0][0])), 0
        with np.errstate(all="ignore"):
            for column in columns:
                value, own = statistic.influence(*column)
                if np.isfinite(value) or not skips_undefined:
                    total, influence, number = total + value, influence + own, number + 1
        return total / number if number else np.nan, units.sums(influence / max(number, 1))[:, 0]

    def estimate(counts: np.ndarray) -> np.ndarray:
        value, by_unit = sums()
        drawn: np.ndarray = value + counts @ by_unit
        return drawn

    return estimate


def _average_precision(scores: np.ndarray, is_positive: np.ndarray) -> Estimate:
    """Return the average precision of a label, see `average_precisions`."""
    order = np.argsort(-scores, kind="stable")
    last, positive = _ends_of_ties(scores[order]), is_positive[order]

    def estimate(counts: np.ndarray) -> np.ndarray:
        drawn = counts[:, order]
        positives = drawn * positive
        precision = positives.cumsum(axis=1)[:, last] / np.maximum(drawn.cumsum(axis=1)[:, last], 1)
        value: np.ndarray = (precision * positives).sum(axis=1) / positives.sum(axis=1)
        return value

    return estimate


def _average_precision_influence(scores: np.ndarray, is_positive: np.ndarray) -> Influence:
    order = np.argsort(-scores, kind="stable")
    ordered, positive = scores[order], is_positive[order].astype(np.float64)
    last, first = _ends_of_ties(ordered), _starts_of_ties(ordered)
    above, right, positives = last + 1.0, positive.cumsum()[last], positive.sum()
    value = (positive * right / above).sum() / positives
    # A row changes the precision at its own threshold and at all lower ones.
    gain, loss = (each[::-1].cumsum()[::-1][first] for each in (positive / above, positive * right / above**2))
    influence = np.empty(len(scores))
    influence[order] = (positive * (right / above - value + gain) - loss) / positives
    return float(value), influence


def _roc_area(scores: np.ndarray, is_positive: np.ndarray) -> Estimate:
    """Return the area under the ROC curve of a label, see `roc_areas`."""
    ranks = _ranks(scores)

    def estimate(counts: np.ndarray) -> np.ndarray:
        drawn = counts * is_positive
        positives = drawn.sum(axis=1)
        above = (drawn * ranks(counts)).sum(axis=1) - positives * (positives + 1) / 2
        area: np.ndarray = above / (positives * (counts.sum(axis=1) - positives))
        return area

    return estimate


def _roc_influence(scores: np.ndarray, is_positive: np.ndarray) -> Influence:
    """Return the area and the influence of each row.

    Source: DeLong, DeLong and Clarke-Pearson 1988, "Comparing the areas under two or more correlated ROC curves".
    """
    positive = is_positive.astype(bool)
    if positive.all() or not positive.any():
        return np.nan, np.zeros(len(scores))
    ranks, share = mean_ranks(scores), np.empty(len(scores))
    share[positive] = (ranks[positive] - mean_ranks(scores[positive])) / (~positive).sum()
    share[~positive] = 1 - (ranks[~positive] - mean_ranks(scores[~positive])) / positive.sum()
    area = share[positive].mean()
    return float(area), (share - area) / np.where(positive, positive.sum(), (~positive).sum())


def _spearman(first: np.ndarray, second: np.ndarray) -> Estimate:
    """Return the correlation of the ranks of two columns (N,); equal values share the mean of their ranks."""
    ranks = _ranks(first), _ranks(second)

    def estimate(counts: np.ndarray) -> np.ndarray:
        total = counts.sum(axis=1, keepdims=True)
        a, b = (rank(counts) - (total + 1) / 2 for rank in ranks)
        product, squares = (counts * a * b).sum(axis=1), (counts * a**2).sum(axis=1) * (counts * b**2).sum(axis=1)
        correlation: np.ndarray = product / np.sqrt(squares)
        return correlation

    return estimate


def _spearman_influence(first: np.ndarray, second: np.ndarray) -> Influence:
    a, b = (mean_ranks(column) - (len(column) + 1) / 2 for column in (first, second))

    def from_ranks(column: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return by how much each row changes sum(ranks of `column` * `other`): it moves the ranks above its own."""
        order = np.argsort(column, kind="stable")
        ordered, above = column[order], other[order][::-1].cumsum()[::-1]
        following = np.append(above, 0)[_ends_of_ties(ordered) + 1]
        changes = np.empty(len(column))
        changes[order] = (following + above[_starts_of_ties(ordered)]) / 2
        return changes

    scale = np.sqrt((a**2).sum() * (b**2).sum())
    correlation = (a * b).sum() / scale
    product = a * b + from_ranks(first, b) + from_ranks(second, a)
    squares = sum(
        (rank**2 + 2 * from_ranks(column, rank)) / (rank**2).sum() for column, rank in ((first, a), (second, b))
    )
    return float(correlation), product / scale - correlation / 2 * squares


def _median_error(predicted: np.ndarray, target: np.ndarray) -> Estimate:
    """Return the median of |predicted - target|, the mean of the middle two of an even number."""
    errors = np.abs(predicted - target)
    order = np.argsort(errors, kind="stable")
    ordered = errors[order]

    def estimate(counts: np.ndarray) -> np.ndarray:
        up_to, total = counts[:, order].cumsum(axis=1), counts.sum(axis=1, keepdims=True)
        places = [(up_to > np.floor(place)).argmax(axis=1) for place in ((total - 1) / 2, total / 2)]
        middle: np.ndarray = (ordered[places[0]] + ordered[places[1]]) / 2
        return middle

    return estimate


def _median_error_influence(predicted: np.ndarray, target: np.ndarray) -> Influence:
    """Return the median error and the influence of each row, with the density at the median from its neighbors.

    Source: Bofinger 1975, "Estimation of a density function using order statistics", for their number.
    """
    errors = np.abs(predicted - target)
    ordered, count = np.sort(errors), len(errors)
    median = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    reach = max(1, int(0.65 * count**0.8))
    low, high = max(0, count // 2 - reach), min(count - 1, count // 2 + reach)
    slope = (ordered[high] - ordered[low]) / (high - low)  # of the error by the rank
    side = np.sign(errors - median)
    return float(median), slope * (side - side.mean()) / 2


AVERAGE_PRECISION: Final = RankStatistic(_average_precision, _average_precision_influence)
ROC_AREA: Final = RankStatistic(_roc_area, _roc_influence)
SPEARMAN: Final = RankStatistic(_spearman, _spearman_influence)
MEDIAN_ERROR: Final = RankStatistic(_median_error, _median_error_influence)


def mean_ranks(values: np.ndarray) -> np.ndarray:
    """Return the rank of each value (N,), from 1; equal values share the mean of their ranks."""
    ranks: np.ndarray = _ranks(values)(np.ones((1, len(values))))[0]
    return ranks


def _ranks(values: np.ndarray) -> Estimate:
    """Return a function from the counts of the rows (D, N) to the rank of each among the drawn rows, (D, N)."""
    order = np.argsort(values, kind="stable")
    back = np.argsort(order, kind="stable")
    first, last = _starts_of_ties(values[order]), _ends_of_ties(values[order])

    def ranks(counts: np.ndarray) -> np.ndarray:
        drawn = counts[:, order]
        up_to = drawn.cumsum(axis=1)
        mean: np.ndarray = ((up_to[:, first] - drawn[:, first]) + up_to[:, last] + 1) / 2
        return mean[:, back]

    return ranks


def _ends_of_ties(ordered: np.ndarray) -> np.ndarray:
    """Return for each of N sorted values the position of the last value that is equal to it."""
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    return ends[np.searchsorted(ends, np.arange(len(ordered)))]


def _starts_of_ties(ordered: np.ndarray) -> np.ndarray:
    """Return for each of N sorted values the position of the first value that is equal to it."""
    starts: np.ndarray = len(ordered) - 1 - _ends_of_ties(ordered[::-1])[::-1]
    return starts
