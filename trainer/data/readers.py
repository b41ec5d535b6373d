"""Records of files in CSV, TSV, JSON, JSON Lines, Parquet or Arrow, one by one, with every value as it stands.

Nothing is guessed: a cell of a CSV file is a string, also where it says `None` or `007`. What cannot be read is a
`DataError` that names the file and the line.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data.columnar import read_columnar
from trainer.data.columns import ColumnError, column_fault, lacking, places_of
from trainer.data.utf8 import UNREADABLE, Lines, text_lines, unreadable
from trainer.errors import DataError, format_error

Records = Iterator[Sequence[Any]]
Found = Iterator[Sequence[Any] | DataError]
"""Records, and in the place of each one that is broken what is wrong with it."""


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
    except ColumnError as error:
        wrong, names = error.args
        raise DataError(column_fault(path, wrong, names, named_by)) from None


def column_names(path: Path, *, separator: str | None, quote: str | None) -> list[str]:
    """The columns of a file: a header, the keys of the first object, a schema; empty where the file has no rows.

    Raises:
        DataError: The file is empty, broken or not UTF-8.
    """
    names = next(_opened(path, None, separator, quote), [])
    if isinstance(names, DataError):
        raise names
    return list(names)


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
            raise DataError(format_error(str(path), "is empty", "Name another file"))
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
            broken = lines.take_fault() or DataError(
                format_error(f"{path}, line {line}", f"broken CSV: {error}", remedy)
            )
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
            positions = places_of(header, columns)
        elif fault:
            yield fault
        elif len(cells) != len(header):
            problem = f"expected {len(header)} cells as in the header"
            remedy = f"Put cells that hold {reader.dialect.delimiter!r} or a line end in quotes"
            yield DataError(format_error(f"{path}, line {line}", problem, remedy, value=len(cells)))
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
            yield DataError(format_error(place, problem, _JSON_REMEDY, value=type(item).__name__))
            continue
        if columns is None:
            yield list(item)
            return
        if named_by is not None:
            yield lacking(place, item, columns, named_by) or [item[column] for column in columns]
            continue
        if not known:
            places_of(list(item), columns)
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
        return DataError(format_error(place, f"broken JSON at column {error.colno}: {error.msg}", _JSON_REMEDY))


def _read_columnar(path: Path, columns: Sequence[str] | None, separator: str | None, quote: str | None) -> Found:
    return read_columnar(path, columns)


_READERS: dict[str, Callable[[Path, Sequence[str] | None, str | None, str | None], Found]] = {
    ".csv": partial(_read_csv, usual=","),
    ".tsv": partial(_read_csv, usual="\t"),
    ".json": _read_json,
    ".jsonl": _read_json,
    ".parquet": _read_columnar,
    ".arrow": _read_columnar,
    ".feather": _read_columnar,
}
_READERS |= {f"{suffix}.gz": _READERS[suffix] for suffix in (".csv", ".tsv", ".json", ".jsonl")}
