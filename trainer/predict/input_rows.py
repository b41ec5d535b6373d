"""Rows to predict, read one by one: of a text, of standard input, of a file, or of a folder of images."""

from __future__ import annotations

import json
import os
import select
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from trainer.data.cells import IMAGE_SUFFIXES, REMEDIES, ROLE_NOUNS
from trainer.data.line_reader import decode_line, long_line_error, read_lines_or_errors
from trainer.data.readers import column_names, format_suffix, missing_columns_error, read_records_or_errors
from trainer.data.splits import row_id
from trainer.data.table import ColumnNames, Table
from trainer.errors import ConfigError, DataError, format_error
from trainer.files.untrusted import JSON_ERRORS, LIMITS, describe_json_error
from trainer.predict.files import INPUT_FORMATS, has_lines
from trainer.protocols import Row

_READ_BYTES = 1 << 16

_REMEDIES = REMEDIES | {"features": "Write what the column has in the training data: a number, a text or nothing"}
"""The remedy for a cell that cannot be used, by role: features have the columns of the training data."""

_NUMBER = "row"
"""The name in `keep` that is the number of a row."""


class InputRow(NamedTuple):
    """A row to predict.

    Attributes:
        number: Counted from 1.
        location: Where it is, for a message: `my.csv, row 18`.
        values: Its values by role; None if it cannot be used.
        error: Why it cannot be used.
        identity: Fields that its prediction starts with, so that a reader knows which row it belongs to.
    """

    number: int
    location: str
    values: Row | None
    error: str | None = None
    identity: Mapping[str, object] = {}


InputRows = Iterator[InputRow | None]
"""Rows; None before the next row must be waited for."""


@dataclass(frozen=True)
class RowFormat:
    """The columns of the rows and how files write them.

    Attributes:
        roles: The roles that a row must have.
        columns: The column or columns of each role in a file; a role that is absent is its own column.
        numeric: The features by name; True for a column of numbers.
        list_separator: Separates words in one cell.
        separator: Separates cells of CSV and TSV; None follows the file's suffix.
        quote: Encloses cells of CSV and TSV; None if quotes are ordinary characters.
        keep: Columns that the predictions repeat; `row` is the number of the row.
    """

    roles: tuple[str, ...]
    columns: ColumnNames
    numeric: Mapping[str, bool] = field(default_factory=dict)
    list_separator: str = " "
    separator: str | None = None
    quote: str | None = '"'
    keep: tuple[str, ...] = ()

    @property
    def kept_columns(self) -> tuple[str, ...]:
        """Return the columns of a file that the predictions repeat."""
        return tuple(name for name in self.keep if name != _NUMBER)

    def identity(self, number: int, kept: Sequence[object] = ()) -> dict[str, object]:
        """Return the fields that a prediction starts with: the number of its row and the values of kept columns."""
        fields: dict[str, object] = {_NUMBER: number} if _NUMBER in self.keep else {}
        return fields | {f"input_{name}": value for name, value in zip(self.kept_columns, kept, strict=False)}

    def table(self, *, lines: bool = False) -> Table:
        """Return the columns of a table that have the roles; on a line, a text of several columns is written whole."""
        columns = {role: self.columns.get(role) or role for role in self.roles}
        if lines and isinstance(columns.get("text"), list):
            columns["text"] = "text"
        if "features" in self.roles:
            columns["features"] = list(self.numeric)
        table = Table.for_roles(
            columns, self.roles, lambda role: f"columns.{role}={columns[role]}", self.list_separator, []
        )
        table.numeric.update(self.numeric)
        return replace(table, remedies=_REMEDIES)


def read_rows(source: Path | str | None, row_format: RowFormat) -> InputRows:
    """Yield the rows of a file or a folder, of a text, or of standard input (None).

    Raises:
        ConfigError: The input is images but the task reads none, or has no columns to keep.
        DataError: The file as a whole cannot be used.
    """
    if row_format.kept_columns and not (isinstance(source, Path) and format_suffix(source)):
        problem = "the input has no columns"
        remedy = f"Name a file with columns such as a CSV, or set keep=[{_NUMBER}]"
        raise ConfigError(format_error("keep", problem, remedy, value=list(row_format.keep)))
    if source is None:
        return _read_lines(read_stdin_lines(), "standard input", row_format, Path())
    if isinstance(source, str):
        return _read_lines(iter([source]), "input", row_format, Path())
    if source.is_dir() or source.suffix.lower() in IMAGE_SUFFIXES:
        return _read_images(source, row_format)
    if has_lines(source):
        return _read_lines(read_lines_or_errors(source), str(source), row_format, source.parent)
    return _read_records(source, row_format)


def rows_of_values(values: Iterable[object], row_format: RowFormat) -> InputRows:
    """Yield the rows of values in memory: texts as on lines of a file, and mappings from column to cell."""
    tables = {is_line: row_format.table(lines=is_line) for is_line in (False, True)}
    for number, value in enumerate(values, 1):
        location, table = f"row {number}", tables[isinstance(value, str)]
        if isinstance(value, str) and len(table.columns) == 1:
            cells: Sequence[object] | DataError = [value]
        else:
            cells = _parse_line(value, location, table) if isinstance(value, str) else _cells_of(value, location, table)
        yield _make_row(number, location, cells, table, Path())._replace(identity=row_format.identity(number))


def read_stdin_lines() -> Iterator[str | DataError | None]:
    """Yield the lines of standard input: a DataError for a line that is not UTF-8, None before a wait.

    A program that writes a line and waits for its prediction gets it at once, and a long pipe is read in large chunks.
    A byte order mark is removed.
    """
    pieces: list[bytes] = []
    size = number = offset = 0
    for chunk in _read_chunks(sys.stdin.fileno()):
        if chunk is None:
            yield None
            continue
        parts = chunk.split(b"\n")
        for position, part in enumerate(parts, 1):
            size += len(part)
            if size <= LIMITS.line_bytes:
                pieces.append(part)
            if position == len(parts) and (chunk or not size):  # text after the last line break is a line too
                continue
            number += 1
            place = f"standard input, line {number}"
            if size > LIMITS.line_bytes:
                yield long_line_error(place)
            else:
                line = b"".join(pieces)
                yield decode_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, place, offset)
            offset += size + 1
            size = 0
            pieces.clear()


def _read_chunks(descriptor: int) -> Iterator[bytes | None]:
    """Yield what is there to read, None before a wait, and the empty chunk at the end."""
    while True:
        if not select.select([descriptor], [], [], 0)[0]:
            yield None
        chunk = os.read(descriptor, _READ_BYTES)
        yield chunk
        if not chunk:
            return


def _read_records(path: Path, row_format: RowFormat) -> InputRows:
    table = row_format.table()
    kept_columns = row_format.kept_columns
    if kept_columns:
        names = column_names(path, separator=row_format.separator, quote=row_format.quote)
        if absent := [name for name in kept_columns if names.count(name) != 1]:
            remedy = f"Choose among {', '.join(names)}"
            raise ConfigError(format_error("keep", f"{path} has no such column", remedy, value=", ".join(absent)))
    columns = list(dict.fromkeys([*table.columns, *kept_columns]))
    records = read_records_or_errors(
        path, columns, separator=row_format.separator, quote=row_format.quote, column_remedy=_column_remedy(table)
    )
    for number, cells in enumerate(records, 1):
        kept = () if isinstance(cells, DataError) else [cells[columns.index(name)] for name in kept_columns]
        row = _make_row(number, f"{path}, row {number}", cells, table, path.parent)
        yield row._replace(identity=row_format.identity(number, kept))


def _read_lines(lines: Iterator[str | DataError | None], name: str, row_format: RowFormat, folder: Path) -> InputRows:
    table = row_format.table(lines=True)
    number = 0
    for line in lines:
        if line is None:
            yield None
            continue
        number += 1
        location = name if name == "input" else f"{name}, line {number}"
        cells = line if isinstance(line, DataError) else _parse_line(line.rstrip("\r\n"), location, table)
        yield _make_row(number, location, cells, table, folder)._replace(identity=row_format.identity(number))


def _parse_line(line: str, location: str, table: Table) -> Sequence[object] | DataError:
    """Return a line as the cells of its columns: one text, two separated by a tab, words, a path, or an object."""
    roles = tuple(table.names)
    if roles == ("text", "text_pair"):
        texts = line.split("\t")
        problem = "expected two texts separated by a tab"
        return texts if len(texts) == 2 else DataError(format_error(location, problem, value=len(texts)))
    if roles == ("words",) and not line.lstrip().startswith("["):
        return [line.split()]
    if len(table.columns) == 1 and roles[0] in ("text", "image"):
        return [line]
    try:
        return _cells_of(json.loads(line), location, table)
    except JSON_ERRORS as error:
        reason = f" ({describe_json_error(error)})" if line.lstrip()[:1] in ("{", "[") else ""
        return _not_an_object(line, location, table, reason)


def _cells_of(value: object, location: str, table: Table) -> Sequence[object] | DataError:
    """Return a mapping from column to cell, or a list of words, as the cells of the columns."""
    roles = tuple(table.names)
    if roles == ("words",) and isinstance(value, list):
        return [value]
    if isinstance(value, dict):
        problem_with_columns = missing_columns_error(location, value, table.columns, _column_remedy(table))
        return problem_with_columns or [value[name] for name in table.columns]
    return _not_an_object(value, location, table)


def _not_an_object(value: object, location: str, table: Table, reason: str = "") -> DataError:
    expected = "a list of words" if tuple(table.names) == ("words",) else f"an object with {', '.join(table.columns)}"
    remedy = "Or name a file, such as a CSV"
    return DataError(format_error(location, f"expected {expected} in JSON{reason}", remedy, value=value))


def _column_remedy(table: Table) -> str:
    """Return the remedy for missing columns; features have the names of training and may be null."""
    if "features" in table.names:
        return "use the column names of the training data, and null for missing values"
    return table.column_remedy


def _make_row(number: int, location: str, cells: Sequence[object] | DataError, table: Table, folder: Path) -> InputRow:
    if isinstance(cells, DataError):
        return InputRow(number, location, None, str(cells))
    try:
        (sample,) = table.samples(iter([(row_id(0, number), location, cells[: len(table.columns)])]), [folder])
    except DataError as error:
        return InputRow(number, location, None, str(error))
    if sample.values is None:
        nouns = [ROLE_NOUNS.get(role, role) for role in table.names if role != "features"]
        missing = " or no ".join(noun.removeprefix("a ").removeprefix("an ") for noun in nouns)
        return InputRow(number, location, None, format_error(location, f"has no {missing}"))
    return InputRow(number, location, sample.values)


def _read_images(path: Path, row_format: RowFormat) -> InputRows:
    if row_format.roles != ("image",):
        problem = f"contains images, but the task reads {', '.join(row_format.roles)}"
        remedy = f"{INPUT_FORMATS}. Pass a text that is also the name of a file through standard input"
        raise ConfigError(format_error("input", problem, remedy, value=str(path)))
    files = iter([path]) if path.is_file() else _find_images(path)
    number = 0
    for number, file in enumerate(files, 1):
        identity = row_format.identity(number) | ({"image": os.path.relpath(file, path)} if file != path else {})
        yield InputRow(number, str(file), {"image": {"bytes": None, "path": str(file)}}, identity=identity)
    if not number:
        raise DataError(format_error(str(path), "contains no images", f"Images end in {', '.join(IMAGE_SUFFIXES)}"))


def _find_images(folder: Path) -> Iterator[Path]:
    """Yield the images below a folder, sorted by name, without hidden files and folders."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(path, name)
