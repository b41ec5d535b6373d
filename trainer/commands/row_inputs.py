"""What a model read in the worst rows of an evaluation: shortened texts and small pictures for the report."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import TYPE_CHECKING, Any

from trainer.errors import DataError
from trainer.predictions import PredictionsWriter
from trainer.report.statistics import NUM_WORST, WorstRows

if TYPE_CHECKING:
    import pyarrow

    from trainer.data.encode import Encoded

logger = logging.getLogger(__name__)

_TEXTS = ("text", "text_pair", "positive", "negative", "words")
"""The roles that contain texts."""

_LENGTH = 500
"""Characters of a text that are kept."""

_SIDE = 96
"""Pixels of the longer side of a picture."""


@contextmanager
def worst_inputs_kept(
    writer: PredictionsWriter, kind: str, encoded: Encoded, split: str, roles: tuple[str, ...]
) -> Iterator[Callable[[pyarrow.Table], None]]:
    """Yield a function that writes predictions; at the end, keep what the model read in the worst of them.

    Args:
        writer: The writer of the predictions.
        kind: The kind of the predictions.
        encoded: The data.
        split: The split of the predictions.
        roles: The columns that the task reads.
    """
    worst = WorstRows(kind, NUM_WORST)

    def write(rows: pyarrow.Table) -> None:
        writer.write(rows)
        worst.add(rows)

    yield write
    positions = [row["row"] for row in worst.rows()]
    try:
        raw = encoded.raw_rows(split, positions, roles) if positions else []
    except (DataError, OSError) as error:  # the data may have been moved since it was encoded
        logger.info("%s: what the model read in the worst rows is not kept: %s", split, error)
        return
    writer.keep_inputs({position: describe_input(row) for position, row in zip(positions, raw, strict=True)})


def describe_input(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the text of a raw row, or its picture as a small PNG in base64; empty if it has neither."""
    if isinstance(row.get("image"), Mapping):
        return {"image": _shrink(row["image"])}
    parts = [row[role] for role in _TEXTS if row.get(role)]
    texts = [" ".join(map(str, part)) if isinstance(part, list) else str(part) for part in parts]
    if isinstance(features := row.get("features"), Mapping):
        texts.append(", ".join(f"{name}={value}" for name, value in features.items()))
    text = " | ".join(texts)
    return {"text": text if len(text) <= _LENGTH else f"{text[: _LENGTH - 1]}…"} if text else {}


def _shrink(cell: Any) -> str:
    from trainer.task.images import decode_image

    image, file = decode_image(cell), BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(file, "PNG")
    return b64encode(file.getvalue()).decode("ascii")
