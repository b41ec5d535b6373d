"""Splits on disk in Arrow's stream format, which the library datasets maps into memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow

_BATCH_BYTES = 4 << 20

_STRINGS = pyarrow.list_(pyarrow.string())
_TYPES = {
    **dict.fromkeys(("labels", "words", "tags"), _STRINGS),
    "value": pyarrow.list_(pyarrow.float64()),
    "score": pyarrow.float64(),
    "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
}


def schema_of(roles: Iterable[str], numeric: Mapping[str, bool] | None = None) -> pyarrow.Schema:
    """The columns of `roles`, and `row`.

    Args:
        roles: In the order of the columns; what is no role is a string.
        numeric: The features by name, and whether each is a number; needed where `features` is among the roles.
    """
    kinds = {True: pyarrow.float64(), False: pyarrow.string()}
    features = pyarrow.struct([(name, kinds[is_number]) for name, is_number in (numeric or {}).items()])
    types = _TYPES | {"features": features}
    return pyarrow.schema([*((role, types.get(role, pyarrow.string())) for role in roles), ("row", pyarrow.int64())])


class ArrowSplit:
    """Writes rows to `path`, in batches of bounded size; a context manager.

    Attributes:
        num_rows: Rows written so far.
    """

    def __init__(self, path: Path, schema: pyarrow.Schema) -> None:
        self.num_rows = 0
        self._rows: list[Sequence[Any]] = []
        self._bytes = 0
        self._schema = schema
        self._writer = pyarrow.ipc.new_stream(str(path), schema)

    def add(self, *values: Any) -> None:
        """Writes one row, now or with its batch: one value for each column of the schema."""
        self._rows.append(values)
        self.num_rows += 1
        self._bytes += sum(map(_size, values))
        if self._bytes > _BATCH_BYTES:
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
        columns = zip(*self._rows, strict=True) if self._rows else ((),) * len(self._schema)
        arrays = [pyarrow.array(values, type=field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pyarrow.record_batch(arrays, schema=self._schema))
        self._rows.clear()
        self._bytes = 0


def _size(value: Any) -> int:
    """Bytes of a value as a Python object, roughly."""
    kind = type(value)
    if kind is str or kind is bytes:
        return 50 + len(value)
    if kind is dict:
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if kind is list else 50


def keep_classes(path: Path, role: str, classes: set[str]) -> tuple[int, int]:
    """Removes the rows with any class of `role` (a string or strings) that is not one of `classes` from a split.

    Returns:
        How many they are, and the `row` of the first (-1: none).
    """
    removed, first = 0, -1
    new = path.with_suffix(".kept")
    with (
        pyarrow.memory_map(str(path)) as file,
        pyarrow.ipc.open_stream(file) as reader,
        pyarrow.ipc.new_stream(str(new), reader.schema) as writer,
    ):
        for batch in reader:
            keep = [classes.issuperset(classes_of(value)) for value in batch[role].to_pylist()]
            if not all(keep):
                removed += keep.count(False)
                first = batch["row"][keep.index(False)].as_py() if first < 0 else first
            writer.write_batch(batch.filter(pyarrow.array(keep, type=pyarrow.bool_())))
    new.replace(path)
    return removed, first


def classes_of(value: str | Sequence[str]) -> Sequence[str]:
    """The classes in a value of `label`, `labels` or `tags`."""
    return (value,) if isinstance(value, str) else value
