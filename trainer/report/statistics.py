"""Statistics of stored predictions: confusions, scores of each class, calibration, entities, and the worst rows.

`trainer.predictions` describes the columns. Probabilities are read in batches, so memory does not grow with them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from trainer.display import shorten_middle
from trainer.files.mapped import as_array
from trainer.predictions import read_batches, split_span

if TYPE_CHECKING:
    import pyarrow

_Ranked: TypeAlias = tuple[float, int, dict[str, Any]]
"""The negative badness of a row, its number and its values."""

NUM_WORST: Final = 20
"""Rows that are shown as the worst ones."""

NAME: Final = 60
"""Characters of the name of a class that are shown."""

NUM_BINS: Final = 15
"""Bins of the calibration curve, as in Guo et al. 2017."""


def read_columns(file: Path, *columns: str) -> list[list[Any]]:
    """Return columns of a file of predictions as lists."""
    values: list[list[Any]] = [[] for _ in columns]
    for batch in read_batches(file, columns):
        for kept, name in zip(values, columns, strict=True):
            kept += batch.column(name).to_pylist()
    return values


@dataclass(frozen=True)
class Confusion:
    """The counts of targets and predictions; rows without a target are left out.

    Attributes:
        names: The K classes.
        support: The rows of each target: (K,).
        predicted: The rows of each prediction: (K,).
        right: The rows whose prediction is right: (K,).
        pairs: The count of each target and each wrong prediction, the largest first.
    """

    names: Sequence[str]
    support: np.ndarray
    predicted: np.ndarray
    right: np.ndarray
    pairs: list[tuple[int, int, int]]

    def scores(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return precision, recall and F1 of each class; NaN if nothing was predicted, or nothing is there."""
        with np.errstate(invalid="ignore", divide="ignore"):
            precision, recall = self.right / self.predicted, self.right / self.support
            f1 = 2 * self.right / (self.predicted + self.support)
        return precision, recall, f1

    def most_confused(self, count: int) -> list[int]:
        """Return the places of at most `count` classes, in their order: the classes of the commonest confusions."""
        places = dict.fromkeys(place for target, prediction, _ in self.pairs for place in (target, prediction))
        return sorted(list(places)[:count])

    def matrix(self, places: Sequence[int] | None = None) -> list[list[int]]:
        """Return the counts of each target (row) and prediction (column), of all classes or of those at `places`."""
        if places is None:
            places = range(len(self.names))
        counts: list[list[int]] = np.diag(self.right[list(places)]).tolist()
        position = {place: index for index, place in enumerate(places)}
        for target, prediction, count in self.pairs:
            if target in position and prediction in position:
                counts[position[target]][position[prediction]] = count
        return counts


def count_classes(targets: Sequence[Any], predictions: Sequence[Any], classes: Sequence[str] | None) -> Confusion:
    """Return the confusion of single classes.

    Args:
        targets, predictions: A name each, or None.
        classes: All names in their order; None if they are unknown.
    """
    pairs = Counter(zip(targets, predictions, strict=True))
    names = list(classes or sorted({str(name) for pair in pairs for name in pair if name is not None}))
    places = {name: index for index, name in enumerate(names)}
    support, predicted, right = (np.zeros(len(names), dtype=np.int64) for _ in range(3))
    wrong = []
    for (target, prediction), count in pairs.items():
        row, column = places.get(target), places.get(prediction)
        if row is None or column is None:
            continue
        support[row] += count
        predicted[column] += count
        if row == column:
            right[row] = count
        else:
            wrong.append((row, column, count))
    return Confusion(names, support, predicted, right, sorted(wrong, key=lambda each: (-each[2], each[:2])))


def count_labels(targets: Sequence[Any], predictions: Sequence[Any], classes: Sequence[str] | None) -> Confusion:
    """Return the counts of sets of labels, without pairs: it is unknown which label takes another one's place."""
    pairs = known_pairs(targets, predictions)
    support = Counter(name for row, _ in pairs for name in row)
    predicted = Counter(name for _, answer in pairs for name in answer)
    right = Counter(name for row, answer in pairs for name in {*row} & {*answer})
    return _of_counts(list(classes or sorted({*support, *predicted})), support, predicted, right)


def count_entities(targets: Sequence[Any], predictions: Sequence[Any]) -> Confusion:
    """Return the counts of entities by type; one is right if its type, its first and its last word are."""
    support, predicted, right = Counter[str](), Counter[str](), Counter[str]()
    for row, answer in known_pairs(targets, predictions):
        actual, guesses = find_entities(row), find_entities(answer)
        for counter, spans in ((support, actual), (predicted, guesses), (right, actual & guesses)):
            counter.update(name for name, _, _ in spans)
    return _of_counts(sorted({*support, *predicted}), support, predicted, right)


def count_spans(targets: Sequence[Any], predictions: Sequence[Any]) -> Confusion:
    """Return the counts of spans by label, each as the text of `trainer.predictions.format_span`."""
    support, predicted, right = Counter[str](), Counter[str](), Counter[str]()
    for row, answer in known_pairs(targets, predictions):
        actual, guesses = {*row}, {*answer}
        for counter, spans in ((support, actual), (predicted, guesses), (right, actual & guesses)):
            counter.update(split_span(span)[2] for span in spans)
    return _of_counts(sorted({*support, *predicted}), support, predicted, right)


def known_pairs(targets: Sequence[Any], predictions: Sequence[Any]) -> list[tuple[Sequence[str], Sequence[str]]]:
    """Return the lists of targets and predictions of each row that has a target."""
    pairs = zip(targets, predictions, strict=True)
    return [(target, answer or ()) for target, answer in pairs if target is not None]


def _of_counts(names: Sequence[str], *counters: Counter[str]) -> Confusion:
    support, predicted, right = (np.array([counter[name] for name in names], dtype=np.int64) for counter in counters)
    return Confusion(names, support, predicted, right, [])


def find_entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Return type, first and last word of each entity, by the rules of `trainer.task.entities`."""
    spans, start, current, closed = set(), 0, None, True
    for place, tag in enumerate([*tags, "O"]):
        has_prefix = len(tag) > 1 and tag[0] in "BIESLU" and tag[1] == "-"
        prefix, name = (tag[0], tag[2:]) if has_prefix else ("S", f"-{tag}")
        kind = None if tag == "O" else name
        if kind != current or closed or prefix in "BSU":
            if current is not None:
                spans.add((current.removeprefix("-"), start, place - 1))
            start = place
        current, closed = kind, prefix in "ESLU"
    return spans


@dataclass(frozen=True)
class Calibration:
    """The share of right answers at each confidence.

    Attributes:
        counts: The answers in each bin, of equal width from 0 to 1: (bins,).
        confidence: Their mean confidence: (bins,).
        accuracy: The share of right ones: (bins,).
    """

    counts: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error: the mean distance of both, weighted by the counts (Guo et al. 2017)."""
        distances = np.abs(self.confidence - self.accuracy)
        return float((self.counts * distances).sum() / max(1, self.counts.sum()))


def measure_calibration(file: Path, kind: str, classes: Sequence[str] | None) -> Calibration | None:
    """Return the calibration of the largest probability of a class, or of all probabilities of labels.

    Args:
        file: The predictions.
        kind: `class` or `labels`.
        classes: The names of labels.

    Returns:
        None without probabilities.
    """
    sums = np.zeros((3, NUM_BINS))
    for batch in read_batches(file, ["target", "prediction", "probabilities"]):
        column = batch.column("probabilities")
        targets = batch.column("target").to_pylist()
        if column.null_count or not len(column):
            return None
        values = as_array(column.flatten()).astype(np.float64)
        if kind == "class":
            offsets = as_array(column.offsets)
            starts = offsets[:-1] - offsets[0]
            confidences = np.maximum.reduceat(values, starts)
            pairs = zip(targets, batch.column("prediction").to_pylist(), strict=True)
            right = np.array([target == prediction for target, prediction in pairs])
            has_target = np.array([target is not None for target in targets])
            confidences, right = confidences[has_target], right[has_target]
        else:
            names = classes or ()
            if len(values) != len(names) * len(targets):
                return None
            confidences, right = values, np.zeros(len(values), dtype=bool)
            places = {name: place for place, name in enumerate(names)}
            known = [
                row * len(names) + places[name]
                for row, target in enumerate(targets)
                for name in target or ()
                if name in places
            ]
            right[known] = True
        is_known = np.isfinite(confidences)  # half precision may overflow
        confidences, right = confidences[is_known], right[is_known]
        bins = np.clip(confidences * NUM_BINS, 0, NUM_BINS - 1).astype(np.int64)
        for line, weights in zip(sums, (None, confidences, right), strict=True):
            line += np.bincount(bins, weights, minlength=NUM_BINS)
    counts = sums[0]
    if not counts.sum():
        return None
    return Calibration(counts, sums[1] / np.maximum(1, counts), sums[2] / np.maximum(1, counts))


@dataclass(frozen=True)
class Baseline:
    """The simplest answers and their scores.

    Attributes:
        answer: What they are.
        scores: Their value of each metric that is known.
    """

    answer: str
    scores: Mapping[str, float]


def measure_baseline(file: Path, kind: str, classes: Sequence[str] | None) -> Baseline | None:
    """Return the scores of the commonest class, or of the mean of the numbers; None if there is no such answer.

    The class or the mean is taken from the same rows, so no constant answer does better by accuracy or squared error.
    """
    (targets,) = read_columns(file, "target")
    known = [target for target in targets if target is not None]
    if not known:
        return None
    if kind == "class":
        name, count = max(Counter(known).items(), key=lambda item: (item[1], str(item[0])))
        share = count / len(known)
        scores = {"accuracy": share, "macro_f1": 2 * share / (1 + share) / max(1, len(classes or {*known}))}
        return Baseline(f"always answering {shorten_middle(name, NAME)}, the commonest here", scores)
    if kind == "tags":
        tags = Counter(tag for row in known for tag in row)
        name, count = tags.most_common(1)[0] if tags else ("", 0)
        return Baseline(
            f"always answering {shorten_middle(name, NAME)}, the commonest here",
            {"accuracy": count / max(1, sum(tags.values()))},
        )
    if kind == "values" and not isinstance(known[0], list):
        numbers = np.array(known, dtype=np.float64)
        distances = numbers - numbers.mean()
        scores = {"mae": np.abs(distances).mean(), "rmse": math.sqrt((distances**2).mean()), "r2": 0.0}
        return Baseline(f"always answering the mean of these rows ({numbers.mean():.4g})", scores)
    return None


class WorstRows:
    """Keeps the rows with the largest losses.

    If no row has a loss, these are the rows whose numbers are farthest off, or whose wrong class is the most probable.

    Args:
        kind: The kind of the predictions.
        count: The number of rows.
    """

    COLUMNS: Final = (
        "row",
        "file",
        "line",
        "target",
        "prediction",
        "probabilities",
        "loss",
        "num_targets",
        "num_right",
    )

    def __init__(self, kind: str, count: int) -> None:
        self._kind, self._count = kind, count
        self._by_loss: list[_Ranked] = []
        self._by_distance: list[_Ranked] = []

    def add(self, rows: pyarrow.RecordBatch | pyarrow.Table) -> None:
        """Consider rows."""
        column = rows.column("loss")
        # Filling nulls by pyarrow would load pandas.
        values = [math.nan if loss is None else loss for loss in column.to_pylist()] if column.null_count else column
        losses = np.array(values if isinstance(values, list) else as_array(values), dtype=np.float64)
        if np.isfinite(losses).any():
            self._by_loss = self._merge(self._by_loss, rows, losses)
        elif not self._by_loss:
            distances = np.array([_distance(self._kind, row) for row in rows.to_pylist()], dtype=np.float64)
            self._by_distance = self._merge(self._by_distance, rows, distances)

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows, the worst first; the largest probability of a class is its `confidence`."""
        return [row for _, _, row in self._by_loss or self._by_distance]

    def _merge(
        self, kept: list[_Ranked], rows: pyarrow.RecordBatch | pyarrow.Table, badness: np.ndarray
    ) -> list[_Ranked]:
        order = np.argsort(np.where(np.isfinite(badness), -badness, np.inf), kind="stable")[: self._count]
        least = -kept[-1][0] if len(kept) == self._count else -math.inf
        for place in order.tolist():
            if np.isfinite(badness[place]) and badness[place] >= least:
                (row,) = rows.slice(place, 1).to_pylist()
                probabilities = row.pop("probabilities")
                row["confidence"] = max(probabilities) if probabilities and self._kind == "class" else None
                kept.append((-float(badness[place]), int(row["row"]), row))
        return sorted(kept, key=lambda each: each[:2])[: self._count]


def find_worst(file: Path, kind: str, count: int) -> list[dict[str, Any]]:
    """Return the worst rows of a file of predictions, the worst first (see `WorstRows`)."""
    worst = WorstRows(kind, count)
    for batch in read_batches(file, WorstRows.COLUMNS):
        worst.add(batch)
    return worst.rows()


def _distance(kind: str, row: Mapping[str, Any]) -> float:
    target, prediction = row["target"], row["prediction"]
    if kind == "similarity" and target is None:
        target = 1.0  # a pair has the same meaning
    if target is None or prediction is None:
        return math.nan
    if kind in ("values", "similarity"):
        if not np.size(target) or np.size(target) != np.size(prediction):
            return math.nan
        with np.errstate(invalid="ignore"):  # two infinite numbers
            return float(np.abs(np.subtract(target, prediction)).max())
    probabilities = row["probabilities"]
    return max(probabilities) if kind == "class" and target != prediction and probabilities else math.nan
