"""The metrics of classes, labels, tags and spans as functions of counts, see `trainer.intervals.estimates`."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.intervals.rank_estimates import AVERAGE_PRECISION, ROC_AREA, estimate_ranked
from trainer.intervals.resampling import Estimate, Units
from trainer.layout import Document
from trainer.predictions import TOP, split_span
from trainer.task.class_scores import CLASS_SCORES, LABEL_SCORES, ClassScore, LabelScore, macro_f1

if TYPE_CHECKING:
    import pyarrow

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
    actual, guessed = (rows.astype(np.int64) * num_classes + classes for rows, classes in (target, predicted))
    right_rows, right_classes = np.divmod(np.intersect1d(actual, guessed, assume_unique=True), num_classes)
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
    table: pyarrow.Table, about: Document, units: Units, metric_names: Collection[str], is_part: bool
) -> dict[str, Estimate]:
    target, predicted, names = read_indices(table, about)
    rows = np.arange(len(table))
    totals, right = _count_entries(units, (rows, target), (rows, predicted), len(names))
    estimates = _class_scores(totals)
    ones, is_right = np.ones(len(table)), np.bincount(right, minlength=len(table))
    estimates["accuracy"] = Share.of(units, is_right, ones)
    if table["probabilities"].null_count:
        return estimates
    probabilities = read_numbers(table["probabilities"])
    if table["top_classes"].null_count == len(table):
        is_target = np.zeros(probabilities.shape, dtype=bool)
        is_target[rows, target] = True
        positive = slice(1, None) if len(names) == 2 else slice(None)  # of two classes, the second
        ranked = probabilities[:, positive], is_target[:, positive], units
        estimates["auroc"] = estimate_ranked(ROC_AREA, *ranked, skips_undefined=True)
        estimates["average_precision"] = estimate_ranked(AVERAGE_PRECISION, *ranked, skips_undefined=True)
    else:
        is_target = read_numbers(table["top_classes"]) == target[:, None]
    order = np.argsort(-probabilities, axis=1, kind="stable")
    is_answer = np.take_along_axis(is_target, order, axis=1)
    place = np.where(is_answer.any(axis=1), is_answer.argmax(axis=1), probabilities.shape[1])
    tops = {*range(1, TOP + 1), *(int(match[1]) for name in metric_names if (match := _TOP_K.fullmatch(name)))}
    return estimates | {
        f"top_{k}_accuracy": Share.of(units, place < k, ones) for k in tops if k <= probabilities.shape[1]
    }


def _label_estimates(
    table: pyarrow.Table, about: Document, units: Units, metric_names: Collection[str], is_part: bool
) -> dict[str, Estimate]:
    target, predicted, names = read_indices(table, about)
    rows = [rows_of_entries(table[name]) for name in ("target", "prediction")]
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
        ranked = read_numbers(table["probabilities"]), is_positive, units
        average_precision = estimate_ranked(AVERAGE_PRECISION, *ranked, skips_undefined=True)
        estimates |= {"mean_average_precision": average_precision, "average_precision": average_precision}
        estimates["auroc"] = estimate_ranked(ROC_AREA, *ranked, skips_undefined=True)
    return estimates


def _tag_estimates(
    table: pyarrow.Table, about: Document, units: Units, metric_names: Collection[str], is_part: bool
) -> dict[str, Estimate]:
    target, predicted, names = read_indices(table, about)
    rows = rows_of_entries(table["target"])
    # A tag may occur several times in a row, so words take the place of rows.
    words = Units(units.of_row[rows], units.count)
    places = np.arange(len(rows))
    totals, _ = _count_entries(words, (places, target), (places, predicted), len(names))
    matched, guesses, actual = _count_entities(target, predicted, rows, len(table), names)
    return _class_scores(totals) | _entity_scores(units, matched, guesses, actual)


def _span_estimates(
    table: pyarrow.Table, about: Document, units: Units, metric_names: Collection[str], is_part: bool
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
    return _class_scores(totals) | _entity_scores(units, matched, guesses, actual)


CLASS_ESTIMATES: Final = {
    "class": _class_estimates,
    "labels": _label_estimates,
    "tags": _tag_estimates,
    "spans": _span_estimates,
}


def _entity_scores(units: Units, matched: np.ndarray, guesses: np.ndarray, actual: np.ndarray) -> dict[str, Estimate]:
    """Return the scores of entities over all types, given their numbers in each row, (N,)."""
    return {
        "entity_f1": Share.of(units, 2 * matched, guesses + actual),
        "entity_precision": Share.of(units, matched, guesses),
        "entity_recall": Share.of(units, matched, actual),
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


def read_indices(table: pyarrow.Table, about: Document) -> tuple[np.ndarray, np.ndarray, Sequence[str]]:
    """Return the class of each target and of each prediction, lists one after the other, and the names."""
    import pyarrow as pa
    from pyarrow import compute

    columns = [table[name].combine_chunks() for name in ("target", "prediction")]
    flat = [column.flatten() if pa.types.is_list(column.type) else column for column in columns]
    names = about["classes"] or sorted({*flat[0].unique().to_pylist(), *flat[1].unique().to_pylist()})
    target, predicted = (compute.index_in(each, pa.array(names, pa.string())).to_numpy() for each in flat)
    return target.astype(np.int64), predicted.astype(np.int64), names


def rows_of_entries(column: Any) -> np.ndarray:
    """Return the row of each entry of a column of lists."""
    lengths = column.combine_chunks().value_lengths().to_numpy()
    return np.repeat(np.arange(len(lengths)), lengths)


def have_one_length(columns: Iterable[Any]) -> bool:
    """Return whether the lists in all rows of these columns have one length; numbers have."""
    import pyarrow as pa
    from pyarrow import compute

    lists = [column for column in columns if pa.types.is_list(column.type)]
    return len({size for column in lists for size in compute.unique(compute.list_value_length(column)).to_pylist()}) < 2


def read_numbers(column: Any) -> np.ndarray:
    """Return a column of numbers, or of lists of as many numbers each, as float64 (N, V)."""
    import pyarrow as pa

    array = column.combine_chunks()
    values = array.flatten() if pa.types.is_list(array.type) else array
    numbers: np.ndarray = values.to_numpy(zero_copy_only=False).astype(np.float64).reshape(len(array), -1)
    return numbers
