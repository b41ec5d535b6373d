"""Reads rows from arguments, files and standard input, one by one; a broken row comes with the reason."""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import IO, Any

SUFFIXES = (".txt", ".jsonl", ".csv")
Row = dict[str, Any]
ReadLine = Callable[[str], Row]
PlacedRow = tuple[str, Row | None, str]  # the place of a row, its values or None, and the reason for None
NumberedRow = tuple[int, str, Row | None, str]  # a number, counted from 1 in each source, and a placed row


def batches(
    sources: list[str], read_line: ReadLine, columns: Row, csv_format: Row, are_files: bool, size: int
) -> Iterator[list[NumberedRow]]:
    """Yield the rows of all sources. `columns` are the columns of files by their names in a row.

    `csv_format` are arguments of csv.reader.

    A batch ends before this process would wait for standard input.
    """
    batch: list[NumberedRow] = []
    for source in sources:
        folder, number = os.path.dirname(source) if is_file(source) else "", 0
        for each in read_rows(source, read_line, columns, csv_format):
            if each and each[1] and are_files:
                each[1]["image"] = os.path.join(folder, os.path.expanduser(str(each[1]["image"] or "")))
            number += each is not None
            batch += [(number, *each)] if each else []
            if batch and (each is None or len(batch) == size):
                yield batch
                batch = []
    if batch:
        yield batch


def is_file(source: str) -> bool:
    return os.path.isfile(source) and source.lower().endswith(SUFFIXES)


def read_rows(source: str, read_line: ReadLine, columns: Row, csv_format: Row) -> Iterator[PlacedRow | None]:
    """Yield the rows of one source, and None before a wait."""
    if source == "-":
        yield from rows_of_lines("standard input", stdin_lines(), read_line)
    elif not is_file(source):
        yield place_row(source if len(source) <= 60 else f"{source[:57]}...", source, read_line)
    else:
        try:
            with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
                if source.lower().endswith(".csv"):
                    yield from rows_of_csv(source, file, columns, csv_format)
                elif source.lower().endswith(".jsonl"):
                    lines = (line if line.strip() else "" for line in file)
                    yield from rows_of_lines(source, lines, lambda line: pick(json.loads(line), columns))
                else:
                    yield from rows_of_lines(source, file, read_line)
        except (OSError, ValueError, csv.Error) as error:  # a problem of the file, not of a row
            yield source, None, reason_of(error)


def rows_of_lines(name: str, lines: Iterable[str | None], read: ReadLine) -> Iterator[PlacedRow | None]:
    number = 0  # line number; an empty string, which has no line end, is skipped
    for line in lines:
        number += line is not None
        if line != "":
            row = line and line.rstrip("\r\n").removeprefix("\ufeff" if number == 1 else "")
            yield None if row is None else place_row(f"{name}, line {number}", row, read)


def rows_of_csv(name: str, file: IO[str], columns: Row, csv_format: Row) -> Iterator[PlacedRow]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(file, strict=True, **csv_format)
    records = filter(None, reader)
    header = next(records, [])
    if wrong := [column for column in column_names(columns) if header.count(column) != 1]:
        raise ValueError(
            f"needs one column {', '.join(map(repr, wrong))}. It has {', '.join(map(repr, header)) or 'none'}"
        )
    for number in count(1):
        try:
            if not (cells := next(records, [])):
                return
            if len(cells) != len(header):
                raise csv.Error(f"expected {len(header)} cells as in the header, got {len(cells)}")
            place = f"{name}, row {number}"
            yield place_row(place, cells, lambda each: pick(dict(zip(header, each, strict=True)), columns))
        except csv.Error as error:
            yield f"{name}, line {reader.line_num}", None, f"broken CSV: {error}"


def stdin_lines() -> Iterator[str | None]:
    rest = b""
    stream: Any = sys.stdin.buffer
    while piece := stream.read1(1 << 16):
        *lines, rest = (rest + piece).split(b"\n")
        yield from (f"{line.decode('utf-8', 'surrogateescape')}\n" for line in lines)
        yield None
    yield rest.decode("utf-8", "surrogateescape")


def json_type(value: Any) -> str:
    """Return what JSON calls the type of a value."""
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), "a number")


def pick(item: Any, columns: Row) -> Row:
    """Return the values of `columns` by their names in a row. All columns must exist; a cell may be null or empty."""
    if not isinstance(item, dict):
        raise ValueError(f"expected an object in JSON, got {json_type(item)}")
    if absent := [column for column in column_names(columns) if column not in item]:
        raise ValueError(f"has no column {', '.join(map(repr, absent))}. It has {', '.join(map(repr, item)) or 'none'}")
    return {
        name: item[column] if isinstance(column, str) else join_columns(item, column)
        for name, column in columns.items()
    }


def column_names(columns: Row) -> list[str]:
    """Return all columns; a text may have several."""
    return [name for column in columns.values() for name in ([column] if isinstance(column, str) else column)]


def join_columns(item: Row, names: list[str]) -> str:
    """Return several cells as one text, as in training: a line `column: cell` for each cell that is not empty."""
    cells = {name: item[name] for name in names if item[name] is not None and str(item[name]).strip()}
    return "\n".join(
        as_document(cell) if is_conversation(cell) else f"{name}: {as_text(cell)}" for name, cell in cells.items()
    )


def is_conversation(cell: object) -> bool:
    """Return whether a cell is a list of chat messages."""
    keys = ({"role", "content"}, {"from", "value"})
    return isinstance(cell, list) and all(
        isinstance(each, dict) and any(map(each.keys().__ge__, keys)) for each in cell
    )


def as_document(cell: Any) -> str:
    """Return a text; chat messages become one as in training, with a line `role: content` for each."""
    if not cell or not is_conversation(cell):
        return as_text(cell)
    return "\n".join(
        ": ".join(map(as_text, (each["role"], each["content"]) if "content" in each else (each["from"], each["value"])))
        for each in cell
    )


def place_row(place: str, source: Any, read: Callable[[Any], Row]) -> PlacedRow:
    if re.search("[\udc80-\udcff]", "".join(source)):  # surrogates stand for bytes that are not UTF-8
        return place, None, "is not UTF-8"
    try:
        return place, read(source), ""
    except Exception as error:  # a broken row can raise anything
        return place, None, reason_of(error)


def as_text(cell: object) -> str:
    """Return a text; a number becomes one as in training: 3, 3.0 and True are `3`, `3` and `1`."""
    if not isinstance(cell, str | int | float | None):
        raise ValueError(f"expected a text, got {type(cell).__name__}")
    if cell is None or cell != cell or not str(cell).strip():
        raise ValueError("is empty")
    if isinstance(cell, str) and re.search("[\ud800-\udfff]", cell):
        raise ValueError("half of a surrogate pair is not a character")
    return str(int(cell) if isinstance(cell, bool | float) and cell % 1 == 0 else cell)


def reason_of(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno}: {error.msg}"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"
