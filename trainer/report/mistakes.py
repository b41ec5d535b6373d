"""The first part of the page about a run: what the model gets wrong, in sentences, and its worst rows."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from markupsafe import Markup

from trainer.display import counted, displayable, shorten, shorten_middle
from trainer.layout import Document
from trainer.predictions import read_inputs, split_span
from trainer.report.answers import pair_numbers, short_name
from trainer.report.page import Section, Table
from trainer.report.statistics import (
    NAME,
    NUM_BINS,
    NUM_WORST,
    Confusion,
    count_classes,
    count_entities,
    count_labels,
    count_spans,
    find_worst,
    known_pairs,
    measure_calibration,
    read_columns,
)

_SHOWN: Final = 10
"""Worst rows that are shown without opening the rest."""

_OUTPUTS: Final = 4
"""Outputs of a row whose distances have a sentence."""

_COLUMNS: Final = 10
"""Columns of the input of a row that are shown without opening them."""

_TEXT: Final = 300
"""Characters of a text in a table."""

_EXACT: Final = 2**53
"""Size from which a float has no decimals, so it is shown with an exponent and not with hundreds of digits."""

_BASE64: Final = re.compile(r"[A-Za-z0-9+/]{16,100000}={0,2}")


def mistake_section(file: Path, about: Document) -> Section:
    """Return the section about the mistakes in a file of predictions with its metadata."""
    kind, classes = about["kind"], about.get("classes")
    weights = "averaged weights" if about.get("weights") == "ema" else "raw weights"
    note = f"Predictions of step {about.get('step')}, {weights}."
    sentences = list(_describe_mistakes(file, kind, classes))
    return Section(
        f"Mistakes on the {about.get('split')} split", note, sentences=sentences, tables=list(_worst_tables(file, kind))
    )


def _describe_mistakes(file: Path, kind: str, classes: Sequence[str] | None) -> Iterator[str]:
    """Yield sentences that say how often the model is wrong, and where most often."""
    if kind == "tokens":
        yield from _describe_tokens(file)
    elif kind == "similarity":
        yield from _describe_ranks(file)
    else:
        targets, predictions = read_columns(file, "target", "prediction")
        if kind == "class":
            yield from _describe_classes(file, count_classes(targets, predictions, classes))
        elif kind == "labels":
            yield from _describe_labels(targets, predictions, count_labels(targets, predictions, classes))
        elif kind == "tags":
            yield from _describe_entities(count_entities(targets, predictions))
        elif kind == "spans":
            yield from _describe_entities(count_spans(targets, predictions))
        else:
            yield from _describe_numbers(targets, predictions)


def _share(part: int, whole: int, noun: str, verb: str = "", rest: str = "") -> str:
    """Return a part of a number as a sentence without its end: `3 of 57 rows are wrong (5.3%)`."""
    return f"{counted(part, noun, verb, of=whole)} {rest}".rstrip() + f" ({100 * part / whole:.1f}%)"


def _quoted(name: str) -> str:
    return f"“{shorten_middle(name, NAME)}”"


def _describe_classes(file: Path, confusion: Confusion) -> Iterator[str]:
    rows = int(confusion.support.sum())
    if not rows:
        return
    wrong = rows - int(confusion.right.sum())
    yield f"{_share(wrong, rows, 'row', 'is', 'wrong')}."
    if not wrong:
        return
    target, prediction, count = confusion.pairs[0]
    if count > 1 and len(confusion.names) > 2:
        right, answer = (_quoted(confusion.names[place]) for place in (target, prediction))
        share = _share(count, int(confusion.support[target]), "row")
        yield f"The commonest mistake: {answer} instead of {right}, in {share}."
    yield from _describe_least("row", confusion)
    calibration = measure_calibration(file, "class", confusion.names)
    if calibration is not None and (sure := int(calibration.counts[-1])):
        wrong = round(sure * (1 - calibration.accuracy[-1]))
        least = 100 * (NUM_BINS - 1) // NUM_BINS
        yield f"With a confidence of at least {least}%, {_share(wrong, sure, 'answer', 'is', 'wrong')}."


def _describe_least(noun: str, confusion: Confusion) -> Iterator[str]:
    """Yield the class whose targets are found least often."""
    known = np.flatnonzero(confusion.support)
    if len(known) > 1:
        recall = confusion.right[known] / confusion.support[known]
        least = int(known[np.lexsort((-confusion.support[known], recall))[0]])
        share = _share(int(confusion.right[least]), int(confusion.support[least]), noun, "is", "found")
        yield f"Found least often: {_quoted(confusion.names[least])}, {share}."


def _describe_labels(targets: Sequence[Any], predictions: Sequence[Any], confusion: Confusion) -> Iterator[str]:
    pairs = known_pairs(targets, predictions)
    if not pairs:
        return
    wrong = sum({*target} != {*answer} for target, answer in pairs)
    yield f"{_share(wrong, len(pairs), 'row', 'has', 'a missing or a wrong label')}."
    missing = confusion.support - confusion.right, confusion.support
    excess = confusion.predicted - confusion.right, confusion.predicted
    for verb, (counts, among), rest in (("Missing", missing, "with it"), ("Wrong", excess, "that got it")):
        if len(counts) and counts.max() > 0:
            place = int(counts.argmax())
            share = _share(int(counts[place]), int(among[place]), "row", rest=rest)
            yield f"{verb} most often: {_quoted(confusion.names[place])}, in {share}."


def _describe_entities(confusion: Confusion) -> Iterator[str]:
    entities, predicted, right = (int(each.sum()) for each in (confusion.support, confusion.predicted, confusion.right))
    if entities:
        missed = _share(entities - right, entities, "entity", "is", "missed")
        yield f"{missed}: the type, the first and the last word must be right."
    wrong = _share(predicted - right, predicted, "predicted entity", "is", "wrong") if predicted else ""
    yield f"{wrong}." if wrong else "No entity is predicted."
    yield from _describe_least("entity", confusion)


def _describe_numbers(targets: Sequence[Any], predictions: Sequence[Any]) -> Iterator[str]:
    for name, actual, answers in list(pair_numbers(targets, predictions))[:_OUTPUTS]:
        errors = answers - actual
        half, most = np.quantile(np.abs(errors), [0.5, 0.9]).tolist()
        yield f"Half of the predictions{name} are within {half:.4g} of their targets, and 90% within {most:.4g}."
        if mean := float(errors.mean()):
            yield f"The predictions{name} are {abs(mean):.4g} too {'high' if mean > 0 else 'low'} on average."


def _describe_ranks(file: Path) -> Iterator[str]:
    ranks, right = read_columns(file, "rank", "num_right")
    known = [rank for rank in ranks if rank is not None]
    if known:
        nearer, far = (sum(rank > least for rank in known) for least in (1, 10))
        yield f"For {_share(nearer, len(known), 'text')}, another text is nearer than the right one."
        yield f"For {_share(far, len(known), 'text')}, ten or more are nearer."
    rated = [value for value in right if value is not None]
    if rated:
        share = _share(len(rated) - sum(rated), len(rated), "text")
        yield f"For {share}, a hard negative is nearer than the right text."


def _describe_tokens(file: Path) -> Iterator[str]:
    counts, right = read_columns(file, "num_targets", "num_right")
    rated = [(count, hits) for count, hits in zip(counts, right, strict=True) if count and hits is not None]
    total = sum(count for count, _ in rated)
    if total:
        yield f"{_share(total - sum(hits for _, hits in rated), total, 'token', 'is', 'wrong')}."


def _worst_tables(file: Path, kind: str) -> Iterator[Table]:
    """Yield the rows with the largest losses, with what the model read as far as it is known."""
    inputs, worst = read_inputs(file), find_worst(file, kind, NUM_WORST)
    rows = []
    for row in worst:
        place = ":".join(str(part) for part in (row["file"], row["line"]) if part is not None)
        target, answer = _describe(kind, row, inputs.get(row["row"], {}))
        read = show_input(inputs.get(row["row"], {}))
        rows.append([read, target, answer, row["confidence"], row["loss"], place or row["row"]])
    last = "file and row" if any(row["file"] is not None for row in worst) else "row"
    columns = ["input", "target", "cosine" if kind == "similarity" else "answer", "confidence", "loss", last]
    table = Table("Worst rows", columns, rows, is_stacked=True).without_empty_columns()
    yield replace(table, rows=table.rows[:_SHOWN])
    yield replace(table, title=counted(len(rows) - _SHOWN, "more row"), rows=table.rows[_SHOWN:], is_folded=True)


def _describe(kind: str, row: Document, inputs: Mapping[str, str]) -> tuple[object, object]:
    """Return target and answer of a row for a table, given what the model read."""
    target, answer = row["target"], row["prediction"]
    if kind == "tags":
        wrong = Counter(
            (tag, guess) for tag, guess in zip(target or (), answer or (), strict=False) if tag != guess
        ).most_common(5)
        listed = ", ".join(f"{tag} → {guess}{f' ({count})' if count > 1 else ''}" for (tag, guess), count in wrong)
        return counted(len(target or ()), "word"), f"{row['num_right']} right; {listed}" if listed else "all right"
    if kind == "spans":
        parts = [f"{row['num_right']} right"]
        for verb, spans, others in (("missed", target, answer), ("wrong", answer, target)):
            words = [_span_words(span, inputs) for span in spans or () if span not in (others or ())]
            parts += [f"{verb} {shorten(', '.join(words), _TEXT)}"] * bool(words)
        return counted(len(target or ()), "span"), "; ".join(parts)
    if kind == "tokens":
        return counted(row["num_targets"], "token"), f"{row['num_right']} right"
    return _show(target), _show(answer)


def _span_words(span: str, inputs: Mapping[str, str]) -> str:
    """Return the words and the label of a span, or its tokens and its label if the words are not stored."""
    first, last, label = split_span(span)
    words = inputs.get(f"{first}:{last}")
    return span if words is None else f"{words} ({label})"


def show_input(values: Mapping[str, str]) -> object:
    """Return the text or the picture that a model read."""
    if _BASE64.fullmatch(picture := values.get("image", "")):
        return Markup('<img src="data:image/png;base64,{}" alt="input">').format(picture)
    if columns := values.get("columns"):
        return _show_columns(columns.split("\n"))
    return shorten(values.get("text", ""), _TEXT)


def _show_columns(lines: Sequence[str]) -> Markup:
    """Return the columns of a row, a line `name: value` for each; some of many are folded."""
    cells = (line.rpartition(": ")[::2] for line in lines)
    shown = [Markup("<span>{} <b>{}</b></span>").format(*map(displayable, cell)) for cell in cells]
    block = Markup('<div class="cells">{}</div>')
    first, rest = (block.format(Markup(" ").join(part)) for part in (shown[:_COLUMNS], shown[_COLUMNS:]))
    if len(shown) <= _COLUMNS:
        return first
    return first + Markup("<details><summary>more columns: {}</summary>{}</details>").format(
        len(shown) - _COLUMNS, rest
    )


def _show(value: object) -> object:
    if isinstance(value, list):
        return short_name(", ".join(f"{item:.5g}" if isinstance(item, float) else str(item) for item in value))
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)  # a target of 302, not of 302.0000
    return short_name(value) if isinstance(value, str) else value
