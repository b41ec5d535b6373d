"""The part of the page that shows what a model answers: confusions, scores of classes, distances, calibration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from trainer.display import counted, displayable, shorten_middle
from trainer.layout import Document
from trainer.report.charts import draw_bars, draw_matrix, draw_points
from trainer.report.page import Figure, Section, Table
from trainer.report.statistics import (
    NAME,
    NUM_BINS,
    Confusion,
    count_classes,
    count_entities,
    count_labels,
    count_spans,
    measure_calibration,
    read_columns,
)

_MATRIX_CLASSES: Final = 20
"""The largest number of classes in the matrix; with more, it shows those that the model confuses most."""

_CONFUSED: Final = 15

_ROWS: Final = 30
"""Rows of a table that are shown without opening it."""

_MAX_POINTS: Final = 1_500
_MAX_OUTPUTS: Final = 4
_TALL_CLASSES: Final = 8
"""Classes from which on a confusion matrix is as high as two charts."""


def answer_section(file: Path, about: Document) -> Section:
    """Return the section about a file of predictions and its metadata."""
    kind, classes = about["kind"], about.get("classes")
    figures: list[Figure] = []
    tables: list[Table] = []
    if kind == "tokens":
        figures += _token_figures(file)
    else:
        targets, predictions = read_columns(file, "target", "prediction")
        if kind == "class":
            confusion = count_classes(targets, predictions, classes)
            figures += draw_confusion(confusion)
            tables += [*_confused(confusion), *_class_tables("class", confusion)]
        elif kind == "labels":
            tables += _class_tables("label", count_labels(targets, predictions, classes))
        elif kind == "tags":
            tables += _tag_tables(targets, predictions)
        elif kind == "spans":
            tables += _class_tables("entity type", count_spans(targets, predictions))
        else:
            figures += _number_figures(kind, targets, predictions)
            tables += _number_tables(targets, predictions)
    if kind in ("class", "labels"):
        figures += _draw_calibration(file, kind, classes)
    return Section(f"Answers on the {about.get('split')} split", figures=figures, tables=tables)


def class_scores_of(file: Path, kind: str, classes: Sequence[str] | None) -> Confusion:
    """Return the counts of classes, labels or types of entities in a file of predictions."""
    targets, predictions = read_columns(file, "target", "prediction")
    if kind == "tags":
        return count_entities(targets, predictions)
    if kind == "spans":
        return count_spans(targets, predictions)
    return (count_classes if kind == "class" else count_labels)(targets, predictions, classes)


def draw_confusion(confusion: Confusion, title: str = "Confusion matrix") -> Iterator[Figure]:
    """Yield the confusion matrix of classes, of many only those that are confused most."""
    count = len(confusion.names)
    shown = list(range(count)) if count <= _MATRIX_CLASSES else confusion.most_confused(_CONFUSED)
    if len(shown) < 2:
        return
    svg = draw_matrix([confusion.names[place] for place in shown], confusion.matrix(shown), "target", "prediction")
    note = "Rows are targets; a stronger color is a larger share of the row."
    if len(shown) < count:
        note += f" The {len(shown)} of {count} classes that are confused most; answers of other classes are left out."
    yield Figure(title, svg, note=note, can_scroll=True, is_tall=len(shown) >= _TALL_CLASSES)


def _confused(confusion: Confusion) -> Iterator[Table]:
    """Yield the commonest confusions: the readable form of a matrix of many classes."""
    rows = [
        [
            *map(short_name, (confusion.names[target], confusion.names[prediction])),
            count,
            _percent(count / confusion.support[target]),
        ]
        for target, prediction, count in confusion.pairs[:_ROWS]
    ]
    if len(confusion.names) > 2:
        more = f": {_ROWS} of {len(confusion.pairs)}" if len(confusion.pairs) > _ROWS else ""
        columns = ["target", "prediction", "rows", "share of the target"]
        is_folded = len(confusion.names) <= _MATRIX_CLASSES
        yield Table(f"Commonest confusions{more}", columns, rows, is_folded=is_folded)


def _class_tables(noun: str, confusion: Confusion) -> Iterator[Table]:
    """Yield precision, recall, F1 and support of each class, the lowest F1 first."""
    precision, recall, f1 = confusion.scores()
    order = np.lexsort((confusion.support, np.nan_to_num(f1, nan=2.0))).tolist()
    rows = [
        [
            short_name(confusion.names[index]),
            *(_known(scores[index]) for scores in (precision, recall, f1)),
            int(confusion.support[index]),
            int(confusion.predicted[index]),
        ]
        for index in order
    ]
    columns = [noun, "precision", "recall", "F1", "support", "predicted"]
    title = f"Scores of each {noun}, the lowest F1 first"
    if len(rows) <= _MATRIX_CLASSES + _ROWS:
        yield Table(title, columns, rows)
        return
    yield Table(f"{title}: {_ROWS} of {len(rows)}", columns, rows[:_ROWS])
    yield Table(f"The other {len(rows) - _ROWS}", columns, rows[_ROWS:], is_folded=True)


def short_name(name: str) -> object:
    """Return the name of a class for a table; a long one is shortened, with the whole name in its tooltip."""
    if len(name) <= NAME:
        return name
    return Markup('<span class="name" title="{}">{}</span>').format(
        *map(displayable, (name, shorten_middle(name, NAME)))
    )


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _draw_calibration(file: Path, kind: str, classes: Sequence[str] | None) -> Iterator[Figure]:
    calibration = measure_calibration(file, kind, classes)
    if calibration is None:
        return
    edges = np.linspace(0, 1, NUM_BINS + 1).tolist()
    known = [index for index in range(NUM_BINS) if calibration.counts[index]]
    bars = [(edges[index], edges[index + 1], float(calibration.accuracy[index])) for index in known]
    axis = "confidence" if kind == "class" else "probability of a label"
    heights = "share of right answers" if kind == "class" else "share of rows with the label"
    svg = draw_bars(bars, axis, heights, bounds=(0.0, 1.0), x_bounds=(0.0, 1.0), diagonal=True)
    error = f"Expected calibration error {calibration.error:.4f}, {NUM_BINS} bins."
    note = f"{error} Bars below the line: the model is too sure."
    yield Figure("Calibration", svg, note=note)
    shares = [(edges[index], edges[index + 1], float(calibration.counts[index])) for index in range(NUM_BINS)]
    svg = draw_bars(shares, axis, "answers", x_bounds=(0.0, 1.0))
    yield Figure("How sure the model is", svg, note=f"{int(calibration.counts.sum())} answers.")


def _tag_tables(targets: Sequence[Any], predictions: Sequence[Any]) -> Iterator[Table]:
    yield from _class_tables("entity type", count_entities(targets, predictions))
    pairs: Counter[tuple[str, str]] = Counter()
    support: Counter[str] = Counter()
    for row, answer in zip(targets, predictions, strict=True):
        support.update(row or ())
        pairs.update((tag, guess) for tag, guess in zip(row or (), answer or (), strict=False) if tag != guess)
    rows = [
        [*map(short_name, (tag, guess)), count, _percent(count / support[tag])]
        for (tag, guess), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:_ROWS]
    ]
    yield Table("Commonest confusions of tags", ["target", "prediction", "words", "share of the target"], rows)


def _outputs(values: Sequence[Any]) -> np.ndarray:
    """Return numbers as float64 (rows, outputs), NaN where there are none."""
    width = max([1, *(len(value) for value in values if isinstance(value, list))])
    plain = [value if isinstance(value, list) else [value] for value in values]
    rows = [value if len(value) == width and None not in value else [np.nan] * width for value in plain]
    return np.array(rows, dtype=np.float64).reshape(len(rows), width)


def pair_numbers(targets: Sequence[Any], predictions: Sequence[Any]) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield a name and the finite targets and predictions of each output."""
    actual, answers = _outputs(targets), _outputs(predictions)
    if actual.shape != answers.shape:
        return
    for output in range(actual.shape[1]):
        kept = np.isfinite(actual[:, output]) & np.isfinite(answers[:, output])
        name = f" of output {output + 1}" if actual.shape[1] > 1 else ""
        if kept.any():
            yield name, actual[kept, output], answers[kept, output]


def _number_figures(kind: str, targets: Sequence[Any], predictions: Sequence[Any]) -> Iterator[Figure]:
    answer = "cosine" if kind == "similarity" else "prediction"
    pairs = list(pair_numbers(targets, predictions))
    for name, actual, answers in pairs[:_MAX_OUTPUTS]:
        places = np.unique(np.linspace(0, len(actual) - 1, min(len(actual), _MAX_POINTS)).astype(int))
        note = f"{counted(len(places), 'row', of=len(actual))}. " if len(places) < len(actual) else ""
        points = [(float(actual[place]), float(answers[place])) for place in places]
        # Similarities have a scale of their own, so only the order of both can be compared.
        reference = None if kind == "similarity" else "equal"
        svg = draw_points(points, "target", answer, reference=reference)
        line = "" if reference is None else "A point on the line is a right answer."
        yield Figure(f"{answer.capitalize()} against target{name}", svg, note=note + line)
        if kind == "values":
            yield Figure(f"Residuals{name}", _draw_histogram(answers - actual, "prediction - target", "rows"))
            points = [(float(answers[place]), float(answers[place] - actual[place])) for place in places]
            svg = draw_points(points, "prediction", "prediction - target", reference="zero")
            yield Figure(f"Residuals against prediction{name}", svg, note=note)
    if not pairs and kind == "similarity":
        cosines = _outputs(predictions)[:, 0]
        svg = _draw_histogram(cosines[np.isfinite(cosines)], "cosine", "pairs")
        yield Figure("Cosine of the two texts of a pair", svg, note="The nearer to 1, the better.")


def _number_tables(targets: Sequence[Any], predictions: Sequence[Any]) -> Iterator[Table]:
    columns = ["output", "rows", "mean error", "median distance", "90% are closer than", "99% are closer than"]
    yield Table("Distances of predictions and targets", columns, number_rows(targets, predictions))


def number_rows(targets: Sequence[Any], predictions: Sequence[Any]) -> list[list[object]]:
    """Return a row for each output: its name, its rows, its mean error, and quantiles of the distances."""
    rows: list[list[object]] = []
    for name, actual, answers in pair_numbers(targets, predictions):
        errors = answers - actual
        quantiles = np.quantile(np.abs(errors), [0.5, 0.9, 0.99]).tolist()
        rows.append([name.removeprefix(" of ") or "all", len(errors), float(errors.mean()), *quantiles])
    return rows


def _token_figures(file: Path) -> Iterator[Figure]:
    losses, counts, right = (
        np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        for values in read_columns(file, "loss", "num_targets", "num_right")
    )
    known = np.isfinite(losses) & (counts > 0)
    yield Figure(
        "Loss of each text",
        _draw_histogram(losses[known], "mean loss of a token", "texts"),
        note="A text far to the right is one that the model does not expect.",
    )
    rated = np.isfinite(right) & (counts > 0)
    shares = right[rated] / counts[rated]
    yield Figure("Right tokens of each text", _draw_histogram(shares, "share of right tokens", "texts"))


def _draw_histogram(values: np.ndarray, axis: str, noun: str) -> str:
    values = values[np.isfinite(values)]
    if not len(values):
        return ""
    low, high = float(values.min()), float(values.max())
    least = max(1e-6, 1e-6 * max(abs(low), abs(high)))  # between neighboring numbers there is no room for bins
    limits = (low, high) if high - low > least else (low - least, high + least)
    counts, edges = np.histogram(values, bins=min(30, max(5, int(np.sqrt(len(values))))), range=limits)
    bars = list(zip(edges[:-1].tolist(), edges[1:].tolist(), counts.astype(float).tolist(), strict=True))
    return draw_bars(bars, axis, noun)
