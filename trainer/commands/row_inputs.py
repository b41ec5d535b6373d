"""The inputs of the rows with the largest loss, for the report: shortened texts, values of columns, and small pictures.

They are made from the encoded rows: reading the source again may take long, and its files may have moved.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trainer.display import shorten
from trainer.predictions import PredictionsWriter, split_span
from trainer.report.statistics import NUM_WORST, WorstRows

if TYPE_CHECKING:
    import pyarrow

    from trainer.files.mapped import MappedRows
    from trainer.protocols import Task

_TEXTS: Final = ("input_ids", "text_pair_ids", "positive_ids", "negative_ids")
"""The columns that contain tokens."""

_LENGTH: Final = 500
"""Characters of a text that are kept."""

_COLUMNS: Final = 40
"""Columns of a table that are kept."""

_CELL: Final = 60
"""Characters of a name or of a value of a column that are kept."""

_SPANS: Final = 40
"""Missed and wrong spans of a text whose words are kept."""

_NUM_OF_FOLDS: Final = 100
"""Rows of a fold whose inputs are kept, for the rows with likely errors of a sweep over folds."""

_SIDE: Final = 96
"""Pixels of the longer side of a picture."""


@contextmanager
def worst_inputs_kept(
    writer: PredictionsWriter, kind: str, rows: MappedRows, task: Task, *, is_fold: bool = False
) -> Iterator[Callable[[pyarrow.Table], None]]:
    """Yield a function that writes predictions; at the end, keep what the model read in the worst of them.

    Args:
        writer: The writer of the predictions.
        kind: The kind of the predictions.
        rows: The encoded rows.
        task: The task that has encoded them.
        is_fold: The rows are a fold: also keep the inputs of the rows whose labels are the least likely.
    """
    worst = WorstRows(kind, NUM_WORST)
    doubtful: list[tuple[float, int]] = []
    classes = (task.info().class_names or ()) if is_fold and kind == "class" else ()

    def write(predictions: pyarrow.Table) -> None:
        writer.write(predictions)
        worst.add(predictions)
        has_all = predictions["top_classes"].null_count == len(predictions) and not predictions["target"].null_count
        if classes and has_all:
            margins = zip(_margins(predictions, classes), predictions["row"].to_pylist(), strict=True)
            doubtful[:] = sorted([*doubtful, *margins])[:_NUM_OF_FOLDS]

    yield write
    inputs: dict[int, dict[str, str]] = {}
    answers = {int(row["row"]): row for row in worst.rows()}
    for position in dict.fromkeys([*answers, *(row for _, row in doubtful)]):
        row = {name: values[0] for name, values in rows[position : position + 1].items()}
        inputs[position] = describe_input(task, row)
        if kind == "spans":
            inputs[position] |= describe_spans(task, row, answers[position])
    writer.keep_inputs(inputs)


def _margins(predictions: pyarrow.Table, classes: Sequence[str]) -> list[float]:
    """Return the margin of each row's label over the most likely other class, as folds are ranked."""
    probabilities = np.stack(predictions["probabilities"].to_pylist())
    index = {name: place for place, name in enumerate(classes)}
    targets = [index[name] for name in predictions["target"].to_pylist()]
    rows = np.arange(len(targets))
    own = probabilities[rows, targets].copy()
    probabilities[rows, targets] = -1.0
    margins: list[float] = (own - probabilities.max(axis=1)).tolist()
    return margins


def describe_input(task: Task, row: Mapping[str, Any]) -> dict[str, str]:
    """Return what the model reads in an encoded row.

    Args:
        task: The task that has encoded it.
        row: The row.

    Returns:
        `text`, `image` (a small PNG in base64) or `columns` (a line `name: value` for each column); else nothing.
    """
    if (texts := getattr(task, "texts", None)) is not None:
        parts = [np.asarray(row[name]) for name in _TEXTS if name in row]
        if "token_type_ids" in row:  # both texts of a pair are in one row
            types = np.asarray(row["token_type_ids"])
            parts = [parts[0][types == number] for number in (0, 1)]
        return {"text": shorten(" | ".join(texts.tokenizer.decode(part.tolist()) for part in parts), _LENGTH)}
    if (images := getattr(task, "images", None)) is not None and "pixels" in row:
        return {"image": _draw(np.frombuffer(row["pixels"], np.uint8).reshape(*images.size, images.channels))}
    if (table := getattr(task, "table", None)) is not None:
        cells = [(name, value) for name, value in table.describe(np.asarray(row["features"])).items()]
        lines = [f"{_one_line(name)}: {_one_line(value)}" for name, value in cells[:_COLUMNS]]
        return {"columns": "\n".join([*lines, *[f"more columns: {len(cells) - _COLUMNS}"] * (len(cells) > _COLUMNS)])}
    return {}


def describe_spans(task: Task, row: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, str]:
    """Return the words of the spans of an encoded row that are missed or wrong, by `first:last`, their tokens."""
    texts: Any = getattr(task, "texts", None)
    if texts is None or "input_ids" not in row:
        return {}
    target, prediction = ({*(answer[name] or ())} for name in ("target", "prediction"))
    places = sorted({split_span(span)[:2] for span in target ^ prediction})[:_SPANS]
    decode, ids = texts.tokenizer.decode, list(row["input_ids"])
    return {f"{first}:{last}": _one_line(decode(ids[first : last + 1])) for first, last in places}


def _one_line(text: str) -> str:
    return shorten(" ".join(text.split()), _CELL)


def _draw(pixels: np.ndarray) -> str:
    from PIL import Image

    image, file = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels), BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(file, "PNG")
    return b64encode(file.getvalue()).decode("ascii")
