"""What is asked: the rows of a text, of standard input, of a file or of a folder of images, one by one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from trainer.data.cells import IMAGE_SUFFIXES, ROLE_NOUNS
from trainer.data.readers import missing_columns_error, read_lines_or_errors, read_records_or_errors
from trainer.data.splits import row_id
from trainer.data.table import ColumnNames, Table
from trainer.errors import ConfigError, DataError, format_error
from trainer.predict.given import has_lines, known_kinds
from trainer.predict.stdin import stdin_lines


class Row(NamedTuple):
    """A row that wants an answer.

    Attributes:
        number: From 1.
        spot: Where it is, for a message: `my.csv, row 18`.
        values: By role; None where it cannot be used.
        fault: Then what is wrong with it.
        named: What its answer begins with, so that one knows whose it is.
    """

    number: int
    spot: str
    values: Mapping[str, Any] | None
    fault: str | None = None
    named: Mapping[str, Any] = {}


Rows = Iterator[Row | None]
"""Rows; None where the next one has to be waited for."""


@dataclass(frozen=True)
class Reading:
    """How rows are read.

    Attributes:
        roles: What a row needs.
        columns: The column or columns of each role in a file; a role that is absent is its own column.
        numeric: The features by name, and whether each is a number.
        list_separator: Between words in one cell.
        separator: Between cells of CSV and TSV; None for what the suffix says.
        quote: Around cells of CSV and TSV; None where quotes are ordinary signs.
    """

    roles: tuple[str, ...]
    columns: ColumnNames
    numeric: Mapping[str, bool] = field(default_factory=dict)
    list_separator: str = " "
    separator: str | None = None
    quote: str | None = '"'

    def table(self) -> Table:
        """The columns of a table that play the roles."""
        columns = {role: self.columns.get(role) or role for role in self.roles}
        if "features" in self.roles:
            columns["features"] = list(self.numeric)
        table = Table.for_roles(
            columns, self.roles, lambda role: f"columns.{role}={columns[role]}", self.list_separator, []
        )
        table.numeric.update(self.numeric)
        return table


def rows_of(given: Path | str | None, reading: Reading) -> Rows:
    """The rows of a file or a folder, of a text, or of standard input (None).

    Raises:
        ConfigError: Images are given to a task that reads none.
        DataError: The file as a whole cannot be used.
    """
    if given is None:
        return _from_lines(stdin_lines(), "standard input", reading, Path())
    if isinstance(given, str):
        return _from_lines(iter([given]), "input", reading, Path())
    if given.is_dir() or given.suffix.lower() in IMAGE_SUFFIXES:
        return _from_images(given, reading)
    if has_lines(given):
        return _from_lines(read_lines_or_errors(given), str(given), reading, given.parent)
    return _from_records(given, reading)


def _from_records(path: Path, reading: Reading) -> Rows:
    table = reading.table()
    found = read_records_or_errors(
        path, table.columns, separator=reading.separator, quote=reading.quote, named_by=_named_by(table)
    )
    for number, cells in enumerate(found, 1):
        yield _row(number, f"{path}, row {number}", cells, table, path.parent)


def _from_lines(lines: Iterator[str | DataError | None], name: str, reading: Reading, folder: Path) -> Rows:
    table = reading.table()
    number = 0
    for line in lines:
        if line is None:
            yield None
            continue
        number += 1
        spot = name if name == "input" else f"{name}, line {number}"
        cells = line if isinstance(line, DataError) else _cells(line.rstrip("\r\n"), spot, table)
        yield _row(number, spot, cells, table, folder)


def _cells(line: str, spot: str, table: Table) -> Sequence[Any] | DataError:
    """A line as the cells of its columns: one text, two with a tab between, words, a path, or an object."""
    roles = tuple(table.names)
    if roles == ("text", "text_pair"):
        texts = line.split("\t")
        problem = "expected two texts with a tab between"
        return texts if len(texts) == 2 else DataError(format_error(spot, problem, value=len(texts)))
    if roles == ("words",) and not line.lstrip().startswith("["):
        return [line.split()]
    if len(table.columns) == 1 and roles[0] in ("text", "image"):
        return [line]
    try:
        found = json.loads(line)
    except json.JSONDecodeError as error:
        found = f"broken JSON at column {error.colno}: {error.msg}"
    if roles == ("words",) and isinstance(found, list):
        return [found]
    if isinstance(found, dict):
        return missing_columns_error(spot, found, table.columns, _named_by(table)) or [
            found[name] for name in table.columns
        ]
    wanted = "a list of words" if roles == ("words",) else f"an object with {', '.join(table.columns)}"
    return DataError(format_error(spot, f"expected {wanted} in JSON", "Or name a file, such as a CSV", value=found))


def _named_by(table: Table) -> str:
    """The keys that name the columns; those of features have the names of training, and may be null."""
    return "their names in training, with null for what is missing" if "features" in table.names else table.named_by


def _row(number: int, spot: str, cells: Sequence[Any] | DataError, table: Table, folder: Path) -> Row:
    if isinstance(cells, DataError):
        return Row(number, spot, None, str(cells))
    try:
        (sample,) = table.samples(iter([(row_id(0, number), spot, cells)]), [folder])
    except DataError as error:
        return Row(number, spot, None, str(error))
    if sample.values is None:
        nouns = " or ".join(ROLE_NOUNS.get(role, role) for role in table.names if role != "features")
        return Row(number, spot, None, format_error(spot, f"lacks {nouns}", "Give one, or leave the row out"))
    return Row(number, spot, sample.values)


def _from_images(path: Path, reading: Reading) -> Rows:
    if reading.roles != ("image",):
        wanted = ", ".join(reading.roles)
        remedy = f"{known_kinds()}; a text that is called like a file comes by standard input"
        raise ConfigError(format_error("input", f"holds images, and the task reads {wanted}", remedy, value=str(path)))
    files = iter([path]) if path.is_file() else _images_in(path)
    number = 0
    for number, file in enumerate(files, 1):
        named = {"image": os.path.relpath(file, path)} if file != path else {}
        yield Row(number, str(file), {"image": {"bytes": None, "path": str(file)}}, named=named)
    if not number:
        raise DataError(format_error(str(path), "holds no images", f"Images end in {', '.join(IMAGE_SUFFIXES)}"))


def _images_in(folder: Path) -> Iterator[Path]:
    """The images below a folder, by name; hidden files and folders are passed over."""
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES:
                yield Path(path, name)
