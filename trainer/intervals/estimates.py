"""The metrics of an evaluation as functions of counts: how often each row counts.

A metric is a function of sums over rows, such as the right answers or the squares of the errors, in which each row
counts as often as it was drawn; so a draw of a bootstrap (see `trainer.intervals.confidence`) costs a product of a
matrix, not a metric over outputs. Metrics of the order of all rows are in `trainer.intervals.rank_estimates`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.intervals.rank_estimates import AVERAGE_PRECISION, MEDIAN_ERROR, ROC_AREA, SPEARMAN, estimate_ranked
from trainer.intervals.resampling import Estimate, Units
from trainer.layout import Document
from trainer.predictions import TOP, split_span
from trainer.task.class_scores import CLASS_SCORES, LABEL_SCORES, ClassScore, LabelScore, macro_f1

if TYPE_CHECKING:
    import pyarrow
    from torchmetrics import Metric

LOWER_IS_BETTER: Final = frozenset(
    {"loss", "perplexity", "mae", "rmse", "alignment", "uniformity", "mape", "median_absolute_error"}
)
"""The metrics here that are better if they are lower; all others are better if they are higher."""

_OF_LABELS_THAT_OCCUR = ("macro_f1", "macro_precision", "macro_recall")
_CLASS_AVERAGES = frozenset({*_OF_LABELS_THAT_OCCUR, "balanced_accuracy"})
_TOP_K = re.compile(r"top_([1-9]\d{0,5})_accuracy")


@dataclass(frozen=True)
class Share:
    """The share of right answers, such as of rows or of entities: an `Estimate`.

    Attributes:
        sums: The right answers and all answers of each unit, (U, 2).
        num_rows: The rows that have an answer.
    """

    sums: np.ndarray
    num_rows: int

    @classmethod
    def of(cls, units: Units, right: np.ndarray, answers: np.ndarray) -> Share:
        """Return the share of the right answers in all answers of each row, both (N,)."""
        return cls(units.sums(right, answers), int(np.count_nonzero(answers)))

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        right, answers = (counts @ self.sums).T
        share: np.ndarray = right / answers
        return share


@dataclass(frozen=True)
class ClassAverage:
    """A score of classes that counts each class alike, however few rows it has: an `Estimate`.

    A draw lacks a third of the classes with one row, so the draws spread less than the scores of other rows, and around
    another value. `trainer.intervals.confidence` therefore uses the jackknife for it.

    Attributes:
        score: Maps counts to the score of each draw.
    """

    score: Estimate

    def __call__(self, counts: np.ndarray) -> np.ndarray:
        return self.score(counts)


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
        estimates |= _CLASS_ESTIMATES[kind](table, about, units, names, is_part)
    elif kind in ("values", "similarity") and not table["target"].null_count:
        estimates |= _number_estimates(_numbers(table["prediction"]), _numbers(table["target"]), units)
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
    columns = (_numbers(table[name]).T for name in ("prediction", "target"))
    names = ("mae", "rmse", "r2", "pearson", "spearman")
    each = (_number_estimates(p[:, None], t[:, None], units) for p, t in zip(*columns, strict=True))
    return [{name: estimates[name] for name in names} for estimates in each]


def metric_arguments(table: pyarrow.Table, about: Document) -> list[np.ndarray] | None:
    """Return what a metric of a class (`metrics=[{_target_: ...}]`) gets for all rows; None if it is not kept."""
    kind = about["kind"]
    if kind == "values":
        columns = [_numbers(table[name]) for name in ("prediction", "target")]
        return [column[:, 0] if column.shape[1] == 1 else column for column in columns]
    if kind not in ("class", "labels") or table["probabilities"].null_count or table["target"].null_count:
        return None
    if table["top_classes"].null_count < len(table):
        return None
    target, _, names = _indices(table, about)
    if kind == "labels":
        classes, target = target, np.zeros((len(table), len(names)), dtype=np.int64)
        target[_rows_of_entries(table["target"]), classes] = 1
    return [_numbers(table["probabilities"]).astype(np.float32), target]


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


def _count_entries(
    units: Units, target: tuple[np.ndarray, np.ndarray], predicted: tuple[np.ndarray, np.ndarray], num_classes: int
) -> tuple[Callable[[np.ndarray], list[np.ndarray]], np.ndarray]:
    """Return a function from counts to the right, the predicted and the actual entries of each class, (D, C).

    The second result is the row of each right entry.

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
    return lambda counts: [part.totals(counts) for part in entries], right_rows


def _class_scores(totals: Callable[[np.ndarray], list[np.ndarray]]) -> dict[str, Estimate]:
    """Return the scores of classes by name, macro F1 included."""

    def estimate(score: ClassScore) -> Estimate:
        return lambda counts: score(*totals(counts))

    return _mark_averages({name: estimate(score) for name, score in {"macro_f1": macro_f1, **CLASS_SCORES}.items()})


def _mark_averages(estimates: Mapping[str, Estimate]) -> dict[str, Estimate]:
    return {name: ClassAverage(each) if name in _CLASS_AVERAGES else each for name, each in estimates.items()}


def _label_scores(totals: Callable[[np.ndarray], list[np.ndarray]], units: Units, num_rows: int) -> dict[str, Estimate]:
    """Return the scores of sets of labels by name."""
    rows = units.sums(np.ones(num_rows))[:, 0]

    def estimate(score: LabelScore) -> Estimate:
        def drawn(counts: np.ndarray) -> np.ndarray:
            right, predicted, actual = totals(counts)
            return score(right, predicted, actual, counts @ rows)

        return drawn

    return _mark_averages({name: estimate(score) for name, score in LABEL_SCORES.items()})


def _class_estimates(
    table: pyarrow.Table, about: Document, units: Units, wanted: Collection[str], is_part: bool
) -> dict[str, Estimate]:
    target, predicted, names = _indices(table, about)
    rows = np.arange(len(table))
    totals, right = _count_entries(units, (rows, target), (rows, predicted), len(names))
    estimates = _class_scores(totals)
    ones, is_right = np.ones(len(table)), np.bincount(right, minlength=len(table))
    estimates["accuracy"] = Share.of(units, is_right, ones)
    if table["probabilities"].null_count:
        return estimates
    probabilities = _numbers(table["probabilities"])
    if table["top_classes"].null_count == len(table):
        is_target = np.zeros(probabilities.shape, dtype=bool)
        is_target[rows, target] = True
        positive = slice(1, None) if len(names) == 2 else slice(None)  # of two classes, the second
        ranked = probabilities[:, positive], is_target[:, positive], units
        estimates["auroc"] = estimate_ranked(ROC_AREA, *ranked, skips_undefined=True)
        estimates["average_precision"] = estimate_ranked(AVERAGE_PRECISION, *ranked, skips_undefined=True)
    else:
        is_target = _numbers(table["top_classes"]) == target[:, None]
    order = np.argsort(-probabilities, axis=1, kind="stable")
    found = np.take_along_axis(is_target, order, axis=1)
    place = np.where(found.any(axis=1), found.argmax(axis=1), probabilities.shape[1])
    tops = {*range(1, TOP + 1), *(int(match[1]) for name in wanted if (match := _TOP_K.fullmatch(name)))}
    return estimates | {
        f"top_{k}_accuracy": Share.of(units, place < k, ones) for k in tops if k <= probabilities.shape[1]
    }


def _label_estimates(
    table: pyarrow.Table, about: Document, units: Units, wanted: Collection[str], is_part: bool
) -> dict[str, Estimate]:
    target, predicted, names = _indices(table, about)
    rows = [_rows_of_entries(table[name]) for name in ("target", "prediction")]
    totals, right = _count_entries(units, (rows[0], target), (rows[1], predicted), len(names))
    size, guesses, matched = (np.bincount(each, minlength=len(table)) for each in (*rows, right))
    exact = (size == matched) & (guesses == matched)
    estimates: dict[str, Estimate] = {
        **_label_scores(totals, units, len(table)),
        **{name: _class_scores(totals)[name] for name in _OF_LABELS_THAT_OCCUR if is_part},
        "micro_f1": Share.of(units, 2 * matched, guesses + size),
        "exact_match": Share.of(units, exact, np.ones(len(table))),
    }
    if table["top_classes"].null_count == len(table):
        is_positive = np.zeros((len(table), len(names)), dtype=bool)
        is_positive[rows[0], target] = True
        ranked = _numbers(table["probabilities"]), is_positive, units
        average_precision = estimate_ranked(AVERAGE_PRECISION, *ranked, skips_undefined=True)
        estimates |= {"mean_average_precision": average_precision, "average_precision": average_precision}
        estimates["auroc"] = estimate_ranked(ROC_AREA, *ranked, skips_undefined=True)
    return estimates


def _tag_estimates(
    table: pyarrow.Table, about: Document, units: Units, wanted: Collection[str], is_part: bool
) -> dict[str, Estimate]:
    target, predicted, names = _indices(table, about)
    rows = _rows_of_entries(table["target"])
    # A tag may occur several times in a row, so words take the place of rows.
    words = Units(units.of_row[rows], units.count)
    places = np.arange(len(rows))
    totals, _ = _count_entries(words, (places, target), (places, predicted), len(names))
    matched, guesses, actual = _count_entities(target, predicted, rows, len(table), names)
    return {
        **_class_scores(totals),
        "entity_f1": Share.of(units, 2 * matched, guesses + actual),
        "entity_precision": Share.of(units, matched, guesses),
        "entity_recall": Share.of(units, matched, actual),
    }


def _span_estimates(
    table: pyarrow.Table, about: Document, units: Units, wanted: Collection[str], is_part: bool
) -> dict[str, Estimate]:
    columns = [
        {(row, span) for row, spans in enumerate(table[name].to_pylist()) for span in spans}
        for name in ("target", "prediction")
    ]
    # A class may occur several times in a row, so spans take the place of rows.
    places = {span: place for place, span in enumerate(sorted(columns[0] | columns[1]))}
    of_span = np.array([row for row, _ in places], dtype=np.int64)
    labels = [split_span(span)[2] for _, span in places]
    names = about["classes"] or sorted({*labels})
    classes = np.array([names.index(label) for label in labels], dtype=np.int64)
    target, predicted = (np.array(sorted(places[span] for span in column), dtype=np.int64) for column in columns)
    spans = Units(units.of_row[of_span], units.count)
    totals, right = _count_entries(spans, (target, classes[target]), (predicted, classes[predicted]), len(names))
    matched, guesses, actual = (
        np.bincount(of_span[each], minlength=len(table)).astype(np.float64) for each in (right, predicted, target)
    )
    return {
        **_class_scores(totals),
        "entity_f1": Share.of(units, 2 * matched, guesses + actual),
        "entity_precision": Share.of(units, matched, guesses),
        "entity_recall": Share.of(units, matched, actual),
    }


_CLASS_ESTIMATES: Final = {
    "class": _class_estimates,
    "labels": _label_estimates,
    "tags": _tag_estimates,
    "spans": _span_estimates,
}


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


def _indices(table: pyarrow.Table, about: Document) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    """Return the class of each target and of each prediction, lists one after the other, and the names."""
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
