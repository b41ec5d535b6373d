"""Records of files in CSV, TSV, JSON, JSON Lines, Parquet or Arrow, one by one, with every value as it stands.

Nothing is guessed: a cell of a CSV file is a string, also where it says `None` or `007`. What cannot be read is a
`DataError` that names the file and the line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data.utf8 import UNREADABLE, Lines, first_line, text_lines, unreadable
from trainer.errors import DataError, explain, nearest

_ROWS = 1_024
"""Rows that are Python objects at a time."""

Records = Iterator[Sequence[Any]]
Found = Iterator[Sequence[Any] | DataError]
"""Records, and in the place of each one that is broken what is wrong with it."""


_NEAR = "Did you mean "


class _ColumnError(Exception):
    """A file has none or several columns of some names; the arguments are those and the file's names."""


def records(path: Path, columns: Sequence[str], *, separator: str | None, quote: str | None, named_by: str) -> Records:
    """The values of `columns`, record by record; memory grows with the file only where JSON is one list.

    Args:
        path: The file; its suffix (`suffix_of`) says how it is read.
        columns: The columns wanted, in this order.
        separator: Between the cells of CSV and TSV; None for the comma and the tab.
        quote: Around cells of CSV and TSV that hold separators or line ends; None where quotes are ordinary signs.
        named_by: The keys that name the columns, for a message: `data.text and data.label`.

    Raises:
        DataError: The file is empty, broken, not UTF-8, or lacks a column.
    """
    for found in _named(path, columns, separator, quote, named_by, sparse=True):
        if isinstance(found, DataError):
            raise found
        yield found


def records_or_faults(
    path: Path, columns: Sequence[str], *, separator: str | None, quote: str | None, named_by: str
) -> Found:
    """The same, but a broken record is no end: a DataError stands in its place, and the next ones follow.

    An object in JSON that lacks a column is broken, where `records` takes that for a value that is missing: of whoever
    asks a trained model, it is the name that is wrong. null is a missing value.

    Raises:
        DataError: The file is empty, cannot be read, lacks a column in its header, or is broken as a whole.
    """
    return _named(path, columns, separator, quote, named_by, sparse=False)


def _named(
    path: Path, columns: Sequence[str], separator: str | None, quote: str | None, named_by: str, *, sparse: bool
) -> Found:
    try:
        yield from _opened(path, columns, separator, quote, None if sparse else named_by)
    except _ColumnError as error:
        wrong, names = error.args
        raise DataError(_column_fault(path, wrong, names, named_by)) from None


def _column_fault(path: Path, wrong: Sequence[str], names: list[str], named_by: str | None) -> str:
    """The message of columns of which there is none, or more than one."""
    counts = {column: names.count(column) for column in wrong}
    problems = [f"{count} columns {column!r}" if count else f"no column {column!r}" for column, count in counts.items()]
    remedy = f"It has {', '.join(map(repr, names))}; name them by {named_by}"
    hints = [hint for column in wrong if (hint := nearest(column, names)).startswith(_NEAR)]
    if len(names) == 1 and not set(",;|\t").isdisjoint(names[0]):
        remedy += ", and what separates them by data.separator"
    elif hints:
        remedy = f"{_NEAR}{' and '.join(hint.removeprefix(_NEAR) for hint in hints)}? {remedy}"
    return explain(str(path), f"has {' and '.join(problems)}", remedy)


def column_names(path: Path, *, separator: str | None, quote: str | None) -> list[str]:
    """The columns of a file: a header, the keys of the first object, a schema; empty where the file has no rows.

    Raises:
        DataError: The file is empty, broken or not UTF-8.
    """
    names = next(_opened(path, None, separator, quote), [])
    if isinstance(names, DataError):
        raise names
    return list(names)


def lacking(place: str, item: Mapping[str, Any], columns: Sequence[str], named_by: str) -> DataError | None:
    """What is wrong with an object that lacks some of the columns; None where it has them all."""
    absent = [column for column in columns if column not in item]
    if not absent:
        return None
    problem = f"has no {'column' if len(absent) == 1 else 'columns'} {', '.join(map(repr, absent))}"
    there = f"It has {', '.join(map(repr, item))}; name them by {named_by}" if item else f"Name them by {named_by}"
    return DataError(explain(place, problem, there))


def _opened(
    path: Path, columns: Sequence[str] | None, separator: str | None, quote: str | None, named_by: str | None = None
) -> Found:
    """The values of `columns`, record by record; without `columns` the names of all of them, once.

    With `named_by` an object in JSON that lacks a column is broken.
    """
    suffix = suffix_of(path)
    assert suffix is not None
    try:
        if path.stat().st_size == 0:
            raise DataError(explain(str(path), "is empty", "Name another file"))
        read = _READERS[suffix]
        if read is _read_json:
            read = partial(_read_json, named_by=named_by)
        yield from read(path, columns, separator, quote)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def suffix_of(path: Path) -> str | None:
    """The suffix that says how to read it, such as `.csv` or `.jsonl.gz`; None where there is no reader."""
    suffixes = ("".join(path.suffixes[-2:]).lower(), path.suffix.lower())
    return next((suffix for suffix in suffixes if suffix in _READERS), None)


def suffixes() -> list[str]:
    """The suffixes that have a reader."""
    return sorted(_READERS)


def _read_csv(
    path: Path, columns: Sequence[str] | None, separator: str | None, quote: str | None, *, usual: str
) -> Found:
    csv.field_size_limit(2**31 - 1)  # the default refuses cells beyond 128 KiB
    lines = Lines(path)
    reader = csv.reader(
        iter(lines),
        delimiter=separator or usual,
        quotechar=quote,
        quoting=csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] = []
    positions: list[int] = []
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            remedy = "Write a quote inside a quoted cell twice; data.quote=null where quotes are ordinary signs"
            broken = lines.take_fault() or DataError(explain(f"{path}, line {line}", f"broken CSV: {error}", remedy))
            if not header:
                raise broken from None
            yield broken
            continue
        fault = lines.take_fault()
        if cells is None:
            return
        if not cells:
            continue
        if not header:
            if fault:
                raise fault
            header = cells
            if columns is None:
                yield header
                return
            positions = _positions(header, columns)
        elif fault:
            yield fault
        elif len(cells) != len(header):
            problem = f"expected {len(header)} cells as in the header"
            remedy = f"Put cells that hold {reader.dialect.delimiter!r} or a line end in quotes"
            yield DataError(explain(f"{path}, line {line}", problem, remedy, value=len(cells)))
        else:
            yield [cells[position] for position in positions]


def _read_json(
    path: Path,
    columns: Sequence[str] | None,
    separator: str | None,
    quote: str | None,
    *,
    named_by: str | None = None,
) -> Found:
    """One object a line, or one list of objects; with `named_by` one that lacks a column is broken."""
    objects = _json_list(path) if _first_sign(path) == "[" else _json_lines(path)
    known = False
    for place, item in objects:
        if isinstance(item, DataError):
            yield item
            continue
        if not isinstance(item, dict):
            problem = "expected an object" + (f" with the columns {', '.join(columns)}" if columns else "")
            yield DataError(explain(place, problem, _JSON_REMEDY, value=type(item).__name__))
            continue
        if columns is None:
            yield list(item)
            return
        if named_by is not None:
            yield lacking(place, item, columns, named_by) or [item[column] for column in columns]
            continue
        if not known:
            _positions(list(item), columns)
            known = True
        yield [item.get(column) for column in columns]


def _first_sign(path: Path) -> str:
    return next((text[0] for line in Lines(path) if (text := line.strip())), "")


def _json_list(path: Path) -> Iterator[tuple[str, Any]]:
    items = _parse(path, 0, "".join(text_lines(path)))
    if isinstance(items, DataError):
        raise items
    for number, item in enumerate(items, 1):
        yield f"{path}, item {number}", item


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    lines = Lines(path)
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}, line {number}", lines.take_fault() or _parse(path, number, line)


_JSON_REMEDY = 'Write one object a line, {"text": ..., "label": ...}, or one list of such objects'


def _parse(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"{path}, line {line or error.lineno}"
        return DataError(explain(place, f"broken JSON at column {error.colno}: {error.msg}", _JSON_REMEDY))


def _read_binary(path: Path, columns: Sequence[str] | None, separator: str | None, quote: str | None) -> Found:
    """Parquet and Arrow, batch by batch, only the columns wanted."""
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
        raise DataError(explain(str(path), f"cannot be read: {first_line(error)}", remedy)) from error


def _parquet_batches(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        if columns is None:
            yield file.schema_arrow.names
            return
        _positions(file.schema_arrow.names, columns)
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
        _positions(file.schema.names, columns)
        yield from map(file.get_batch, range(file.num_record_batches)) if with_footer else file


def _positions(names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Where `columns` stand among the `names` of a file."""
    if wrong := [column for column in columns if names.count(column) != 1]:
        raise _ColumnError(wrong, names)
    return [names.index(column) for column in columns]


_READERS: dict[str, Callable[[Path, Sequence[str] | None, str | None, str | None], Found]] = {
    ".csv": partial(_read_csv, usual=","),
    ".tsv": partial(_read_csv, usual="\t"),
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_binary,
    ".arrow": _read_binary,
    ".feather": _read_binary,
}
_READERS |= {f"{suffix}.gz": _READERS[suffix] for suffix in (".csv", ".tsv", ".json", ".jsonl")}
