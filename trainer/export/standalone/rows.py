"""Rows of arguments, of files and of standard input, one by one, each with its place; a broken one says why."""

import csv
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import IO, Any

KINDS = (".txt", ".jsonl", ".csv")
Row = dict[str, Any]
ReadLine = Callable[[str], Row]
Asked = tuple[str, Row | None, str]  # where a row stands, its values or None, and then what is wrong with it


def batches(sources: list[str], read_line: ReadLine, columns: Row, are_files: bool, size: int) -> Iterator[list[Asked]]:
    """The rows of all sources; a batch ends before a wait. `columns` are those of a file, by their names in a row."""
    batch: list[Asked] = []
    for source in sources:
        folder = os.path.dirname(source) if is_file(source) else ""
        for each in read_rows(source, read_line, columns):
            if each and each[1] and are_files:
                each[1]["image"] = os.path.join(folder, os.path.expanduser(str(each[1]["image"] or "")))
            batch += [each] if each else []
            if batch and (each is None or len(batch) == size):
                yield batch
                batch = []
    if batch:
        yield batch


def is_file(source: str) -> bool:
    return os.path.isfile(source) and source.lower().endswith(KINDS)


def read_rows(source: str, read_line: ReadLine, columns: Row) -> Iterator[Asked | None]:
    """The rows of one source; None before a wait."""
    if source == "-":
        yield from of_lines("standard input", stdin_lines(), read_line)
    elif not is_file(source):
        yield asked(source if len(source) <= 60 else f"{source[:57]}...", source, read_line)
    else:
        try:
            with open(source, encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
                if source.lower().endswith(".csv"):
                    yield from of_csv(source, file, columns)
                elif source.lower().endswith(".jsonl"):
                    lines = (line if line.strip() else "" for line in file)
                    yield from of_lines(source, lines, lambda line: picked(json.loads(line), columns))
                else:
                    yield from of_lines(source, file, read_line)
        except (OSError, ValueError, csv.Error) as error:  # not of a row, but of the file
            yield source, None, reason_of(error)


def of_lines(name: str, lines: Iterable[str | None], read: ReadLine) -> Iterator[Asked | None]:
    number = 0  # of the line; one that has not even an end is passed over
    for line in lines:
        number += line is not None
        if line != "":
            row = line and line.rstrip("\r\n").removeprefix("\ufeff" if number == 1 else "")
            yield None if row is None else asked(f"{name}, line {number}", row, read)


def of_csv(name: str, file: IO[str], columns: Row) -> Iterator[Asked]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(file, strict=True)
    records = filter(None, reader)
    header = next(records, [])
    if wrong := [column for column in columns.values() if header.count(column) != 1]:
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
            yield asked(place, cells, lambda each: picked(dict(zip(header, each, strict=True)), columns))
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


def picked(item: Any, columns: Row) -> Row:
    """The values of `columns`, by their names in a row. None may be absent: what is missing is null, or empty."""
    if not isinstance(item, dict):
        raise ValueError(f"expected an object in JSON, got {type(item).__name__}")
    if absent := [column for column in columns.values() if column not in item]:
        raise ValueError(f"has no column {', '.join(map(repr, absent))}. It has {', '.join(map(repr, item)) or 'none'}")
    return {name: item[column] for name, column in columns.items()}


def asked(place: str, given: Any, read: Callable[[Any], Row]) -> Asked:
    if re.search("[\udc80-\udcff]", "".join(given)):  # what a byte that is no UTF-8 was read as
        return place, None, "is not UTF-8"
    try:
        return place, read(given), ""
    except Exception as error:  # whatever a broken row makes fail
        return place, None, reason_of(error)


def reason_of(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno}: {error.msg}"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"
