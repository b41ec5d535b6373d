"""Records of Parquet and Arrow files, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.data.columns import places_of
from trainer.data.utf8 import first_line
from trainer.errors import DataError, format_error

_ROWS = 1_024
"""Rows that are Python objects at a time."""


def read_columnar(path: Path, columns: Sequence[str] | None) -> Iterator[Sequence[Any]]:
    """The values of `columns`, record by record, and no others are read; without `columns` the names of all, once.

    Raises:
        DataError: The file is damaged.
        ColumnError: It lacks one of the columns.
    """
    import pyarrow

    batches = _parquet_batches if path.suffix.lower() == ".parquet" else _arrow_batches
    try:
        for batch in batches(path, columns):
            if columns is None:
                yield batch
                return
            for start in range(0, batch.num_rows, _ROWS):
                piece = batch.slice(start, _ROWS)
                yield from zip(*(piece.column(column).to_pylist() for column in columns), strict=True)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        remedy = "It is damaged, or it is of another format than its name says"
        raise DataError(format_error(str(path), f"cannot be read: {first_line(error)}", remedy)) from error


def _parquet_batches(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        if columns is None:
            yield file.schema_arrow.names
            return
        places_of(file.schema_arrow.names, columns)
        yield from file.iter_batches(_ROWS, columns=list(columns))


def _arrow_batches(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    """Both of Arrow's formats: with a footer (Feather 2) and as a stream (what the library datasets writes)."""
    import pyarrow

    with pyarrow.memory_map(str(path)) as source:
        with_footer = source.read(6) == b"ARROW1"
        source.seek(0)
        file = pyarrow.ipc.open_file(source) if with_footer else pyarrow.ipc.open_stream(source)
        if columns is None:
            yield file.schema.names
            return
        places_of(file.schema.names, columns)
        yield from map(file.get_batch, range(file.num_record_batches)) if with_footer else file
