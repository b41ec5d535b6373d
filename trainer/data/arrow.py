"""Splits on disk in Arrow's stream format, which the library datasets maps into memory."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow
from pyarrow import compute

_BATCH_CHARACTERS = 4 << 20
_SCHEMA = pyarrow.schema({"text": pyarrow.string(), "label": pyarrow.string(), "row": pyarrow.int64()})


class ArrowSplit:
    """Writes rows of `text`, `label` and `row` to `path`, in batches of bounded size; a context manager.

    Attributes:
        num_rows: Rows written so far.
    """

    def __init__(self, path: Path) -> None:
        self.num_rows = 0
        self._rows: list[tuple[str, str, int]] = []
        self._characters = 0
        self._writer = pyarrow.ipc.new_stream(str(path), _SCHEMA)

    def add(self, text: str, label: str, row: int) -> None:
        """Writes one row, now or with its batch."""
        self._rows.append((text, label, row))
        self.num_rows += 1
        self._characters += len(text) + len(label) + 100  # what a row of empty strings costs here, roughly in bytes
        if self._characters > _BATCH_CHARACTERS:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        columns = zip(*self._rows, strict=True) if self._rows else ((), (), ())
        arrays = [pyarrow.array(values, type=field.type) for values, field in zip(columns, _SCHEMA, strict=True)]
        self._writer.write_batch(pyarrow.record_batch(arrays, schema=_SCHEMA))
        self._rows.clear()
        self._characters = 0


def keep_labels(path: Path, labels: set[str]) -> tuple[int, int]:
    """Removes the rows with any other label from a split; how many they are, and the `row` of the first (-1: none)."""
    kept = pyarrow.array(sorted(labels), type=pyarrow.string())
    removed, first = 0, -1
    new = path.with_suffix(".kept")
    with (
        pyarrow.memory_map(str(path)) as file,
        pyarrow.ipc.open_stream(file) as reader,
        pyarrow.ipc.new_stream(str(new), _SCHEMA) as writer,
    ):
        for batch in reader:
            keep = compute.is_in(batch["label"], value_set=kept)
            others = batch.filter(compute.invert(keep))
            if others.num_rows and not removed:
                first = others["row"][0].as_py()
            removed += others.num_rows
            writer.write_batch(batch.filter(keep))
    new.replace(path)
    return removed, first
