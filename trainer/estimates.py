"""The metrics of an evaluation as functions of counts: how often each row counts.

A metric is a function of sums over rows, such as the right answers or the squares of the errors, in which each row
counts as often as it was drawn; so a draw of a bootstrap (see `trainer.intervals`) costs a product of a matrix, not a
metric over outputs. Spearman's correlation and the mean average precision depend on the order of all rows: the order is
found once, and the counts give the ranks; if there are too many rows for that (`_MAX_ORDERED`), they have no estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.layout import Document
from trainer.predictions import TOP
from trainer.sample_rng import SampleRng
from trainer.task.class_scores import CLASS_SCORES, ClassScore

if TYPE_CHECKING:
    import pyarrow

Estimate = Callable[[np.ndarray], np.ndarray]
"""Maps the counts of the units, float64 (D, U), to the metric of each draw, (D,); NaN if it is not defined."""

LOWER_IS_BETTER: Final = frozenset({"loss", "perplexity", "mae", "rmse", "alignment", "mape"})
"""The metrics here that are better if they are lower; all others are better if they are higher."""

SHARES_OF_ROWS: Final = frozenset({"accuracy", "exact_match"})
"""The metrics that are a share of right answers."""

NUM_DRAWS: Final = 1_000
MAX_UNITS: Final = 16_384
"""More rows are divided into this many groups."""

_CHUNK = 2**20
"""Counts that are in memory at once."""

_MAX_ORDERED = 2**17
"""Largest number of rows times columns whose order is followed through all draws."""

_SEED = 0


@dataclass(frozen=True)
class Units:
    """The units that a draw takes: rows, or groups of rows.

    Attributes:
        of_row: The unit of each row, int64 (N,).
        count: The number of units, U.
    """

    of_row: np.ndarray
    count: int

    @classmethod
    def for_rows(cls, num_rows: int) -> Units:
        """Return the units of some rows: each row if there are few, else random groups of nearly equal size."""
        if num_rows <= MAX_UNITS:
            return cls(np.arange(num_rows), num_rows)
        order = SampleRng(_SEED, 1, [num_rows]).generator(0).permutation(num_rows)
        return cls(order % MAX_UNITS, MAX_UNITS)

    @property
    def are_rows(self) -> bool:
        return self.count == len(self.of_row)

    def sums(self, *columns: np.ndarray) -> np.ndarray:
        """Return the sum of each column (N,) over the rows of each unit, (U, K)."""
        if self.are_rows:
            return np.stack(columns, axis=1).astype(np.float64)
        return np.stack([np.bincount(self.of_row, weights=column, minlength=self.count) for column in columns], axis=1)

    def draws(self) -> Iterator[np.ndarray]:
        """Yield the counts of the units in each draw, float64 (D, U), some draws at a time."""
        rng = SampleRng(_SEED, 0, range(NUM_DRAWS))
        size = max(1, _CHUNK // self.count)
        for start in range(0, NUM_DRAWS, size):
            chosen = (
                rng.generator(draw).integers(self.count, size=self.count)
                for draw in range(start, min(start + size, NUM_DRAWS))
            )
            yield np.stack([np.bincount(units, minlength=self.count) for units in chosen]).astype(np.float64)


def make_estimates(table: pyarrow.Table, about: Document, units: Units) -> dict[str, Estimate]:
    """Return the estimates of all metrics that a kind of predictions may have, by name."""
    estimates: dict[str, Estimate] = {}
    num_targets = table["num_targets"].to_numpy().astype(np.float64)
    if not table["loss"].null_count:
        loss = table["loss"].to_numpy().astype(np.float64)
        estimates["loss"] = _mean(units, loss * num_targets, num_targets)
    kind = about["kind"]
    if kind in ("tags", "tokens"):
        estimates["accuracy"] = _mean(units, table["num_right"].to_numpy().astype(np.float64), num_targets)
    if kind == "tokens" and "loss" in estimates:
        mean_loss = estimates["loss"]
        estimates["perplexity"] = lambda counts: np.exp(mean_loss(counts))
    if kind in ("class", "labels", "tags") and not table["target"].null_count:
        estimates |= _CLASS_ESTIMATES[kind](table, about, units)
    elif kind in ("values", "similarity") and not table["target"].null_count:
        estimates |= _number_estimates(_numbers(table["prediction"]), _numbers(table["target"]), units)
    if "rank" in table.column_names and not table["rank"].null_count:
        ranks, ones = table["rank"].to_numpy(), np.ones(len(table))
        estimates["mrr"] = _mean(units, 1 / ranks, ones)
        estimates |= {f"recall_at_{at}": _mean(units, ranks <= at, ones) for at in (1, 5)}
    if kind == "similarity":
        # Of unit vectors, |a - p|^2 is 2 - 2 cos(a, p).
        distances = 2 - 2 * _numbers(table["prediction"])[:, 0]
        estimates["alignment"] = _mean(units, distances, np.ones(len(distances)))
    return estimates


def _mean(units: Units, values: np.ndarray, weights: np.ndarray) -> Estimate:
    sums = units.sums(values, weights)

    def estimate(counts: np.ndarray) -> np.ndarray:
        value, weight = (counts @ sums).T
        mean: np.ndarray = value / weight
        return mean

    return estimate


# Classes


@dataclass(frozen=True)
class _Entries:
    """Classes that belong to rows: the unit and the class of each entry, and how often it occurs, all (E,)."""

    units: np.ndarray
    classes: np.ndarray
    times: np.ndarray
    num_classes: int

    @classmethod
    def of(cls, units: Units, rows: np.ndarray, classes: np.ndarray, num_classes: int) -> _Entries:
        pairs, times = np.unique(units.of_row[rows] * num_classes + classes, return_counts=True)
        return cls(pairs // num_classes, pairs % num_classes, times.astype(np.float64), num_classes)

    def totals(self, counts: np.ndarray) -> np.ndarray:
        """Return the number of entries of each class in each draw, (D, C)."""
        return np.stack(
            [
                np.bincount(self.classes, weights=draw[self.units] * self.times, minlength=self.num_classes)
                for draw in counts
            ]
        )


def _f1_estimates(
    units: Units, target: tuple[np.ndarray, np.ndarray], predicted: tuple[np.ndarray, np.ndarray], num_classes: int
) -> tuple[Estimate, Estimate, Estimate, np.ndarray, dict[str, Estimate]]:
    """Return macro F1 over the classes that occur, over all, micro F1, the rows of right entries, and class scores.

    Args:
        units: The units.
        target: The row and the class of each target.
        predicted: The row and the class of each prediction; a pair occurs once in it and once in `target`.
        num_classes: C.
    """
    wanted, guessed = (rows.astype(np.int64) * num_classes + classes for rows, classes in (target, predicted))
    right_rows, right_classes = np.divmod(np.intersect1d(wanted, guessed, assume_unique=True), num_classes)
    parts = ((right_rows, right_classes), predicted, target)
    entries = [_Entries.of(units, rows, classes, num_classes) for rows, classes in parts]

    def scores(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        matched, guesses, actual = (part.totals(counts) for part in entries)
        return 2 * matched / np.maximum(guesses + actual, 1), guesses + actual > 0

    def over_present(counts: np.ndarray) -> np.ndarray:
        f1, present = scores(counts)
        mean: np.ndarray = f1.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
        return mean

    def over_all(counts: np.ndarray) -> np.ndarray:
        mean: np.ndarray = scores(counts)[0].mean(axis=1)
        return mean

    def micro(counts: np.ndarray) -> np.ndarray:
        matched, guesses, actual = (part.totals(counts).sum(axis=1) for part in entries)
        score: np.ndarray = 2 * matched / np.maximum(guesses + actual, 1)
        return score

    def score_estimate(score: ClassScore) -> Estimate:
        return lambda counts: score(*(part.totals(counts) for part in entries))

    named = {name: score_estimate(score) for name, score in CLASS_SCORES.items()}
    return over_present, over_all, micro, right_rows, named


def _class_estimates(table: pyarrow.Table, about: Document, units: Units) -> dict[str, Estimate]:
    target, predicted, names = _indices(table, about)
    rows = np.arange(len(table))
    macro, _, _, right, named = _f1_estimates(units, (rows, target), (rows, predicted), len(names))
    ones, is_right = np.ones(len(table)), np.bincount(right, minlength=len(table))
    estimates = {"accuracy": _mean(units, is_right, ones), "macro_f1": macro, **named}
    if table["probabilities"].null_count:
        return estimates
    probabilities = _numbers(table["probabilities"])
    if table["top_classes"].null_count == len(table):
        is_target = np.zeros(probabilities.shape, dtype=bool)
        is_target[rows, target] = True
        if units.are_rows and probabilities.size <= _MAX_ORDERED:
            positive = slice(1, None) if len(names) == 2 else slice(None)  # of two classes, the second
            ranked = probabilities[:, positive], is_target[:, positive]
            estimates["auroc"] = _mean_of_labels(*ranked, _roc_area)
            estimates["average_precision"] = _mean_of_labels(*ranked, _average_precision)
    else:
        is_target = _numbers(table["top_classes"]) == target[:, None]
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :TOP]
    is_found = np.take_along_axis(is_target, order, axis=1).cumsum(axis=1)
    tops = {f"top_{k}_accuracy": is_found[:, k - 1] for k in range(1, is_found.shape[1] + 1)}
    return estimates | {name: _mean(units, found, ones) for name, found in tops.items()}


def _label_estimates(table: pyarrow.Table, about: Document, units: Units) -> dict[str, Estimate]:
    target, predicted, names = _indices(table, about)
    rows = [_rows_of_entries(table[name]) for name in ("target", "prediction")]
    _, macro, micro, right, _ = _f1_estimates(units, (rows[0], target), (rows[1], predicted), len(names))
    size, guesses, matched = (np.bincount(each, minlength=len(table)) for each in (*rows, right))
    exact = (size == matched) & (guesses == matched)
    estimates = {"micro_f1": micro, "macro_f1": macro, "exact_match": _mean(units, exact, np.ones(len(table)))}
    has_all = table["top_classes"].null_count == len(table)
    if units.are_rows and len(table) * len(names) <= _MAX_ORDERED and has_all:
        is_positive = np.zeros((len(table), len(names)), dtype=bool)
        is_positive[rows[0], target] = True
        scores = _numbers(table["probabilities"])
        average_precision = _mean_of_labels(scores, is_positive, _average_precision)
        estimates |= {"mean_average_precision": average_precision, "average_precision": average_precision}
        estimates["auroc"] = _mean_of_labels(scores, is_positive, _roc_area)
    return estimates


def _tag_estimates(table: pyarrow.Table, about: Document, units: Units) -> dict[str, Estimate]:
    target, predicted, names = _indices(table, about)
    rows = _rows_of_entries(table["target"])
    # A tag may occur several times in a row, so words take the place of rows.
    words = Units(units.of_row[rows], units.count)
    places = np.arange(len(rows))
    macro, _, _, _, named = _f1_estimates(words, (places, target), (places, predicted), len(names))
    matched, guesses, actual = _count_entities(target, predicted, rows, len(table), names)
    return {
        **named,
        "macro_f1": macro,
        "entity_f1": _mean(units, 2 * matched, guesses + actual),
        "entity_precision": _mean(units, matched, guesses),
        "entity_recall": _mean(units, matched, actual),
    }


_CLASS_ESTIMATES: Final = {"class": _class_estimates, "labels": _label_estimates, "tags": _tag_estimates}


def _count_entities(
    target: np.ndarray, predicted: np.ndarray, rows: np.ndarray, num_rows: int, names: Sequence[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the matched, predicted and actual entities of each row of words, (N,)."""
    import torch

    from trainer.task.entities import find_entities, read_scheme

    scheme = read_scheme(names)
    lengths = np.bincount(rows, minlength=num_rows)
    starts = np.cumsum(lengths) - lengths
    counts = []
    for start in range(0, num_rows, 4_096):
        own = slice(start, min(start + 4_096, num_rows))
        words = slice(starts[own][0], starts[own][-1] + lengths[own][-1])
        place = np.arange(words.start, words.stop) - starts[rows[words]]
        tags = np.full((2, own.stop - own.start, max(1, int(lengths[own].max()))), len(names))
        tags[0, rows[words] - start, place], tags[1, rows[words] - start, place] = target[words], predicted[words]
        actual, guesses = (find_entities(torch.from_numpy(each), scheme) for each in tags)
        matched = guesses.begins & actual.begins & (guesses.types == actual.types) & (guesses.ends == actual.ends)
        counts.append(torch.stack([each.sum(dim=1) for each in (matched, guesses.begins, actual.begins)]).numpy())
    matched_rows, predicted_rows, actual_rows = np.concatenate(counts, axis=1).astype(np.float64)
    return matched_rows, predicted_rows, actual_rows


def _mean_of_labels(
    scores: np.ndarray, is_positive: np.ndarray, statistic: Callable[[np.ndarray, np.ndarray], Estimate]
) -> Estimate:
    """Return the mean over the labels (N, C) that have a value, see `RankingScore`."""
    of_label = [statistic(*column) for column in zip(scores.T, is_positive.T, strict=True)]

    def estimate(counts: np.ndarray) -> np.ndarray:
        values = np.stack([value(counts) for value in of_label])
        defined = np.isfinite(values)
        mean: np.ndarray = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
        return mean

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


def _indices(table: pyarrow.Table, about: Document) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    """Return the class of each target and of each prediction, those of lists one after the other, and the names."""
    import pyarrow as pa
    from pyarrow import compute

    columns = [table[name].combine_chunks() for name in ("target", "prediction")]
    flat = [column.flatten() if pa.types.is_list(column.type) else column for column in columns]
    names = about["classes"] or sorted({*flat[0].unique().to_pylist(), *flat[1].unique().to_pylist()})
    target, predicted = (compute.index_in(each, pa.array(names, pa.string())).to_numpy() for each in flat)
    return target.astype(np.int64), predicted.astype(np.int64), names


def _rows_of_entries(column: Any) -> np.ndarray:
    """Return the row of each entry of a column of lists."""
    lengths = column.combine_chunks().value_lengths().to_numpy()
    return np.repeat(np.arange(len(lengths)), lengths)


# Numbers


def _numbers(column: Any) -> np.ndarray:
    """Return a column of numbers, or of lists of as many numbers each, as float64 (N, V)."""
    import pyarrow as pa

    array = column.combine_chunks()
    values = array.flatten() if pa.types.is_list(array.type) else array
    numbers: np.ndarray = values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(array), -1)
    return numbers


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
            lambda n, error, square, t, tt, p, *_: 1 - (square - (p - t) ** 2 / n) / (tt - t**2 / n)
        ),
        "mae": mean_of(lambda n, error, *_: error / n),
        "rmse": mean_of(lambda n, error, square, *_: np.sqrt(square / n)),
        "r2": mean_of(lambda n, error, square, t, tt, *_: 1 - square / (tt - t**2 / n)),
        "pearson": mean_of(
            lambda n, error, square, t, tt, p, pp, pt: (
                (pt - p * t / n) / np.sqrt((pp - p**2 / n).clip(0) * (tt - t**2 / n).clip(0))
            )
        ),
    }
    with np.errstate(over="ignore"):
        relative = (abs(predicted - target) / abs(target).clip(np.finfo(np.float64).eps)).mean(axis=1)
    estimates["mape"] = _mean(units, relative, ones)
    if units.are_rows and target.size <= _MAX_ORDERED:
        each = [_spearman(p, t) for p, t in columns]
        estimates["spearman"] = lambda counts: np.mean([value(counts) for value in each], axis=0)
    return estimates


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


def _ranks(values: np.ndarray) -> Estimate:
    """Return a function from the counts of the rows (D, N) to the rank of each among the drawn rows, (D, N)."""
    order = np.argsort(values, kind="stable")
    back = np.argsort(order, kind="stable")
    last = _ends_of_ties(values[order])
    first = len(values) - 1 - _ends_of_ties(values[order][::-1])[::-1]

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
