"""Reading mapped files without keeping them in the memory of the process.

The columns of a split are mapped from a file. Each access brings pages of the file, and many neighbors with them, into
the memory of the process, where they would stay. Only Linux tells which file an address is mapped from; elsewhere
everything works, and the pages stay until the system takes them back.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow

from trainer.errors import DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_SMALL = 2**24
"""Bytes of a table that may stay in memory."""

_MADV_DONTNEED = 4


class MappedRows:
    """Rows of a table, usually mapped from an Arrow file, with the few methods of `datasets.Dataset` that a run needs.

    The datasets library itself, with pandas, takes longer to load than a small file takes to train on.

    Args:
        data: The table.
        path: The file that the table is mapped from, which another process can map as well.
    """

    def __init__(self, data: pyarrow.Table, path: str | None = None) -> None:
        self.data = data
        self._path = path

    @classmethod
    def from_file(cls, path: str) -> MappedRows:
        """Map the rows of a file in the streaming format of Arrow.

        Raises:
            OSError: The file cannot be read.
            ValueError: It is not such a file.
        """
        with pyarrow.memory_map(path) as source, pyarrow.ipc.open_stream(source) as reader:
            return cls(reader.read_all(), path)

    @property
    def column_names(self) -> list[str]:
        """The names of the columns."""
        names: list[str] = self.data.column_names
        return names

    def __len__(self) -> int:
        return int(self.data.num_rows)

    def __getitem__(self, key: str | slice) -> Any:
        """Return all values of a column, or the columns of a slice."""
        if isinstance(key, str):
            return self.data.column(key).to_pylist()
        start, stop, _ = key.indices(len(self))
        return self.data.slice(start, max(0, stop - start)).to_pydict()

    def __reduce__(self) -> tuple[Any, ...]:
        return (MappedRows, (self.data,)) if self._path is None else (MappedRows.from_file, (self._path,))

    def select(self, positions: Sequence[int]) -> MappedRows:
        """Return the rows at some positions, in memory."""
        return MappedRows(self.data.take(positions))

    def iter_tables(self, names: Sequence[str], size: int) -> Iterator[pyarrow.Table]:
        """Yield some columns, so many rows at a time."""
        table = self.data.select(names)
        for start in range(0, len(self), size):
            yield table.slice(start, size)


def as_array(values: pyarrow.Array | pyarrow.ChunkedArray) -> np.ndarray:
    """Return numbers, times or truth values, if possible without a copy; pyarrow's own conversion loads pandas."""
    if isinstance(values, pyarrow.ChunkedArray):
        values = values.combine_chunks()
    if pyarrow.types.is_timestamp(values.type):
        return as_array(values.cast(pyarrow.int64())).view(f"datetime64[{values.type.unit}]")
    is_boolean = pyarrow.types.is_boolean(values.type)
    if values.null_count or not len(values) or not (is_boolean or _is_number(values.type)):
        return np.asarray(values.to_numpy(zero_copy_only=False))
    _, buffer = values.buffers()
    if is_boolean:
        bits = np.unpackbits(np.frombuffer(buffer, np.uint8), bitorder="little")
        return bits[values.offset : values.offset + len(values)].view(np.bool_)
    dtype = _numpy_type(values.type)
    return np.frombuffer(buffer, dtype, len(values), values.offset * dtype.itemsize)


def _is_number(kind: pyarrow.DataType) -> bool:
    return bool(pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind))


def _numpy_type(numbers: pyarrow.DataType) -> np.dtype[Any]:
    """Return NumPy's type of numbers; older versions of pyarrow load pandas to convert a type."""
    return np.dtype({"halffloat": "float16", "float": "float32", "double": "float64"}.get(str(numbers), str(numbers)))


class ArrayInFile:
    """A one-dimensional array that is read from a file, a few values at a time.

    Args:
        file: The file.
        position: The position of the first value in the file.
        dtype: The type of the values.
    """

    __slots__ = ("_dtype", "_file", "_position")

    def __init__(self, file: MappedFile, position: int, dtype: np.dtype[Any]) -> None:
        self._file = file
        self._position = position
        self._dtype = dtype

    def __getitem__(self, place: int | slice) -> Any:
        """Return a value, or the values of a slice that has both ends."""
        start, stop = (place.start, place.stop) if isinstance(place, slice) else (place, place + 1)
        size = self._dtype.itemsize
        data = self._file.read(self._position + int(start) * size, int(stop - start) * size)
        values: np.ndarray = np.frombuffer(data, self._dtype)
        return values if isinstance(place, slice) else values[0]


class MappedFile:
    """A large file that a part of the address space shows.

    Args:
        start: The first address.
        stop: The address after the last one.
        offset: The position of the first address in the file.
        path: The file.
        descriptor: The same, opened; it is closed with this object.
    """

    def __init__(self, start: int, stop: int, offset: int, path: str, descriptor: int) -> None:
        self._start = start
        self._stop = stop
        self._offset = offset
        self._path = path
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def read(self, position: int, size: int) -> bytes:
        """Return bytes of the file.

        Raises:
            DataError: The file has been cut off since it was mapped.
        """
        data = os.pread(self._descriptor, size, position)
        if len(data) < size:
            raise DataError(format_error(self._path, "has been cut off during the run", "Start the run again"))
        return data

    def release(self) -> None:
        """Remove the pages from the memory of this process; the next access brings them back."""
        import ctypes

        size = ctypes.c_size_t(self._stop - self._start)
        ctypes.CDLL(None).madvise(ctypes.c_void_p(self._start), size, _MADV_DONTNEED)

    def array(self, values: pyarrow.Array) -> ArrayInFile | None:
        """Return numbers as an array in this file; None if they are not in it as they are."""
        *_, buffer = values.buffers()
        if values.null_count or not _is_number(values.type) or not (self._start <= buffer.address < self._stop):
            return None
        width = values.type.bit_width // 8
        position = self._offset + buffer.address - self._start + values.offset * width
        return ArrayInFile(self, position, _numpy_type(values.type))


def open_mapped_file(table: pyarrow.Table) -> MappedFile | None:
    """Open the file that a large table is mapped from; None if it is in memory.

    Only a mapping that cannot be written is used: its pages are always equal to the file.
    """
    if table.nbytes <= _SMALL:  # the system lists thousands of mappings, which takes longer than reading a small table
        return None
    chunks = table.column(0).chunks
    address = next((buffer.address for chunk in chunks for buffer in chunk.buffers() if buffer), 0)
    # Not Linux, or the file is gone: the mapping itself is read.
    with suppress(OSError), open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            extent, permissions, offset, _, inode, *path = line.rstrip("\n").split(maxsplit=5)
            start, stop = (int(bound, 16) for bound in extent.split("-"))
            if start <= address < stop and stop - start > _SMALL and "w" not in permissions and path:
                descriptor = os.open(path[0], os.O_RDONLY | os.O_CLOEXEC)
                if os.fstat(descriptor).st_ino == int(inode):
                    return MappedFile(start, stop, int(offset, 16), path[0], descriptor)
                os.close(descriptor)
    return None


def release_pages(rows: Dataset | MappedRows) -> None:
    """Remove the pages of a split's file from the memory of this process."""
    if (mapped := open_mapped_file(rows.data)) is not None:
        mapped.release()


def read_chunks(rows: Dataset | MappedRows, *names: str, size: int = 10_000) -> Iterator[pyarrow.Table]:
    """Yield columns of a split, so many rows at a time; memory does not grow with the rows."""
    mapped = open_mapped_file(rows.data)
    if isinstance(rows, MappedRows):
        tables = rows.iter_tables(names, size)
    else:
        tables = rows.with_format("arrow").select_columns(list(names)).iter(size)
    for table in tables:
        yield table
        if mapped is not None:
            mapped.release()


class RowReader:
    """Reads rows of an encoded split by position, without a Python object per value.

    Args:
        rows: The split. Its file stays mapped; numbers are read from a large file itself, because each access to a
            mapping brings up to a megabyte of the file into the memory of the process.
    """

    def __init__(self, rows: Dataset | MappedRows) -> None:
        table: pyarrow.Table = rows.data if isinstance(rows, MappedRows) else rows.with_format("arrow")[:]
        self._columns = {name: table.column(name).chunks for name in table.column_names}
        first_column = next(iter(self._columns.values()))
        self._file = open_mapped_file(table)
        self._starts = np.cumsum([0, *map(len, first_column)])
        self._views: dict[tuple[str, int], _View] = {}

    def read(self, ids: Sequence[int]) -> LazyColumns:
        """Return the columns of B rows: a column of numbers is an array (B,), a column of lists is B arrays."""
        chunks = np.searchsorted(self._starts, ids, side="right") - 1
        places = list(zip(chunks.tolist(), (np.asarray(ids) - self._starts[chunks]).tolist(), strict=True))
        return LazyColumns(self._columns, lambda name: self._read_column(name, places))

    def _read_column(self, name: str, places: list[tuple[int, int]]) -> Any:
        views = [self._view(name, chunk) for chunk, _ in places]
        values = [view.row(row) for view, (_, row) in zip(views, places, strict=True)]
        return values if views[0].is_list else np.array(values, dtype=None if views[0].is_number else object)

    def _view(self, name: str, chunk: int) -> _View:
        view = self._views.get((name, chunk))
        if view is None:
            view = self._views[name, chunk] = _View(self._columns[name][chunk], self._file)
        return view


class LazyColumns(Mapping[str, Any]):
    """Columns that are read when they are first used: most batches need few of them."""

    def __init__(self, names: Iterable[str], read: Callable[[str], Any]) -> None:
        self._names = dict.fromkeys(names)
        self._read = lru_cache(maxsize=None)(read)

    def __getitem__(self, name: str) -> Any:
        if name not in self._names:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _View:
    """A chunk of a column. Numbers, and the numbers of lists, are read from memory, or from a large file itself."""

    __slots__ = ("_column", "_offsets", "_values", "is_list", "is_number")

    def __init__(self, column: pyarrow.Array, file: MappedFile | None) -> None:
        self._column = column
        self.is_list = hasattr(column, "offsets")
        values = column.values if self.is_list else column
        self.is_number = pyarrow.types.is_primitive(values.type)
        if self.is_number:
            self._values = _numbers(values, file)
            offsets: Any = _numbers(column.offsets, file) if self.is_list else []
            self._offsets = offsets.tolist() if isinstance(offsets, np.ndarray) else offsets

    def row(self, row: int) -> Any:
        """Return a value, or an array of the values of a list."""
        if self.is_number:
            if not self.is_list:
                return self._values[row]
            start, stop = self._offsets[row : row + 2]
            return self._values[start:stop]
        return self._column[row].values.to_numpy(zero_copy_only=False) if self.is_list else self._column[row].as_py()


def _numbers(values: pyarrow.Array, file: MappedFile | None) -> np.ndarray | ArrayInFile:
    in_file = None if file is None else file.array(values)
    return as_array(values) if in_file is None else in_file
