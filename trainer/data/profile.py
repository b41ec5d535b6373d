"""Look at the columns of a table before anything is configured: kinds, classes, lengths and language."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal
from unicodedata import east_asian_width

from trainer.data.cells import IMAGE_SUFFIXES, as_messages, is_number, join_messages, parse_spans, unescape_tab
from trainer.data.labels import find_lists
from trainer.data.language import count_tokens, guess_language
from trainer.data.line_reader import READ_ERRORS, LineReader, unreadable_error
from trainer.data.plausibility import DATE, IDENTIFIER, FeatureColumn, Leaks, has_number_notation
from trainer.data.readers import column_names, format_suffix, read_records
from trainer.data.splits import row_id, split_row_id
from trainer.data.table import Table, describe_columns
from trainer.display import counted
from trainer.errors import DataError, format_error
from trainer.files.untrusted import JSON_ERRORS

MAX_ROWS = 100_000
"""Rows of a file that are read; the rest of a larger file is not looked at."""

_MAX_LISTED = 8
_MAX_COLUMNS = 40
_MAX_CHARACTERS = 50_000_000
_MAX_COMPARED = 5_000
"""Values of a column, or texts, that are looked at one by one."""

_MAX_CHECKED = 2_000
"""First rows that are checked as the source of a job checks all rows."""

_MAX_CLASSES = 1_000
_TEXT_NAMES = ("text", "text_pair", "anchor", "positive", "negative", "sentence1", "sentence2", "premise", "hypothesis")
"""Names of columns that are texts, even if they are short and repeat."""

_MAX_LABEL_TOKENS = 8
"""Classes have shorter names than this, on average."""

_MAX_NUMERIC_CLASSES = 20
"""A column with more different whole numbers probably contains amounts."""

_MOST = 0.9
"""Share of the cells from which on they decide what a column is."""

Kind = Literal[
    "empty",
    "constant",
    "identifier",
    "date",
    "number",
    "mixed",
    "class",
    "text",
    "list",
    "spans",
    "image",
    "messages",
    "other",
]
"""The kind of the cells of a column; `mixed` is numbers with some texts among them, such as `12,50` or `$3`."""

_SEPARATORS = {",": ",", ";": ";", "\t": "\\t", "|": "|"}
"""Separators of cells that are recognized in a header, as `data.separator` writes them."""


@dataclass(frozen=True)
class ColumnProfile:
    """A column as its cells look; cells without a value are left out.

    Attributes:
        name: The name.
        kind: What the cells look like.
        cells: The cells that have a value.
        counts: The number of cells for each value, as text; of a list, for each part.
        separator: The separator of lists that are written as one text each; None for other columns.
    """

    name: str
    kind: Kind
    cells: Sequence[object]
    counts: Counter[str]
    separator: str | None = None

    @property
    def can_be_class(self) -> bool:
        """Return whether the values repeat often enough to be classes: short texts, or few whole numbers."""
        return self.kind == "class" or (self.kind == "number" and self._is_few_whole_numbers)

    @property
    def _is_few_whole_numbers(self) -> bool:
        numbers = [float(value) for value in list(self.counts)[: _MAX_NUMERIC_CLASSES + 1]]
        few = 1 < len(self.counts) <= min(_MAX_NUMERIC_CLASSES, len(self.cells) / 2)
        return few and all(number.is_integer() for number in numbers)

    @cached_property
    def lengths(self) -> list[int]:
        """Approximate lengths of the first texts in tokens, ascending: words, or characters of Chinese or Japanese."""
        return sorted(map(count_tokens, self._texts)) or [0]

    @property
    def mean_length(self) -> float:
        """The mean length of a text in tokens."""
        return sum(self.lengths) / len(self.lengths)

    @property
    def long_length(self) -> int:
        """The length that 95 of 100 texts do not exceed."""
        return self.lengths[int(0.95 * (len(self.lengths) - 1))]

    @cached_property
    def language(self) -> str:
        """The probable language of the texts; empty if none is probable."""
        return guess_language(self._texts)

    def describe(self) -> str:
        """Return the values of the column for the screen: classes with counts, lengths, ranges."""
        if self.kind in ("text", "messages"):
            language = f", {self.language}" if self.language else ""
            return f"about {self.mean_length:.0f} tokens, 95% below {self.long_length + 1}{language}"
        if self.kind in ("class", "list", "spans") or self.can_be_class:
            return list_counts(self.counts)
        if self.kind == "number":
            numbers = [float(value) for value in self.counts]
            ends = (min(numbers), max(numbers))
            least, most = (f"{end:,.0f}" if 1e4 <= abs(end) < 1e15 else f"{end:g}" for end in ends)
            return f"from {least} to {most}, {len(numbers):,} different"
        return f"{len(self.counts):,} different" if self.counts else ""

    @property
    def _texts(self) -> list[str]:
        return [str(cell) for cell in self.cells[:_MAX_COMPARED]]


@dataclass(frozen=True)
class TableProfile:
    """The first rows of a table.

    Attributes:
        path: The file.
        columns: The columns, in the order of the file.
        num_rows: The rows that were read.
        is_whole: All rows of the file were read.
        separator: The separator of a CSV file if it is not the usual one, as `data.separator` takes it.
        notes: What is odd about the file as a whole.
        first_rows: The cells of the first rows, for the checks of the data.
    """

    path: Path
    columns: Sequence[ColumnProfile]
    num_rows: int
    is_whole: bool = True
    separator: str | None = None
    notes: list[str] = field(default_factory=list)
    first_rows: Sequence[Sequence[object]] = ()

    def of_kind(self, *kinds: Kind) -> list[ColumnProfile]:
        """Return the columns of some kinds."""
        return [column for column in self.columns if column.kind in kinds]

    def describe(self) -> Iterator[str]:
        """Yield lines for the screen: the size of the table, its columns, and what is odd."""
        yield f"{self.path}: {counted(self.num_rows, 'row')}, {counted(len(self.columns), 'column')}"
        shown = self.columns[:_MAX_COLUMNS]
        cells = [(column.name, column.kind, column.describe()) for column in shown]
        widths = [max(_width(row[place]) for row in cells) for place in (0, 1)]
        for row in cells:
            padded = [text + " " * (width - _width(text)) for text, width in zip(row, widths, strict=False)]
            yield "  " + "  ".join([*padded, row[2]])
        if len(self.columns) > len(shown):
            yield f"  and {counted(len(self.columns) - len(shown), 'more column')}"


def _width(text: str) -> int:
    """Return the columns that a text takes on a terminal, where Chinese characters take two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)


def list_counts(counts: Counter[str]) -> str:
    """Return the most frequent values with their counts: `tool 12, fruit 3`; white space at an end shows by quotes."""
    shown = [
        (value if value == value.strip() else repr(value), count) for value, count in counts.most_common(_MAX_LISTED)
    ]
    more = f", and {len(counts) - _MAX_LISTED} more" if len(counts) > _MAX_LISTED else ""
    return ", ".join(f"{value} {count:,}" for value, count in shown) + more


def profile_table(path: Path) -> TableProfile:
    """Return the profile of a file in one of the formats of `data=files`.

    Raises:
        DataError: The file is empty, broken, has no rows, or has no usable header.
    """
    separator = _find_separator(path)
    delimiter = None if separator is None else unescape_tab(separator)
    names = column_names(path, separator=delimiter, quote='"')
    repeated = sorted({name for name in names if names.count(name) > 1})
    usable = [name for name in names if name not in repeated]
    _check_header(path, names, usable)
    notes = [f"the columns named {name!r} share a name and are left out" for name in repeated if name]
    if "" in repeated:
        notes.append("columns without a name are left out")
    rows: list[Sequence[object]] = []
    characters, is_whole = 0, True
    for row in read_records(path, usable, separator=delimiter, quote='"', column_remedy=""):
        if len(rows) == MAX_ROWS or characters > _MAX_CHARACTERS:
            is_whole = False
            break
        rows.append(row)
        characters += sum(len(cell) for cell in row if isinstance(cell, str | bytes))
    if not rows:
        raise DataError(format_error(str(path), "has no rows", "Name another file"))
    if not is_whole:
        notes.append(f"only the first {len(rows):,} rows were looked at")
    columns = [profile_column(name, cells) for name, cells in zip(usable, zip(*rows, strict=True), strict=True)]
    notes += [
        f"{column.name} contains chat messages as texts in JSON, which are read as they are written; lists of "
        "messages in a JSON Lines or Parquet file become lines `role: content`"
        for column in columns
        if column.kind == "text" and as_messages(_parse_list(column.cells[0])) is not None
    ]
    return TableProfile(path, columns, len(rows), is_whole, separator, notes, rows[:_MAX_CHECKED])


def profile_column(name: str, cells: Sequence[object]) -> ColumnProfile:
    """Return the profile of a column from its cells, in the order of the rows."""
    present = [cell for cell in cells if not _is_missing(cell)]
    first = present[0] if present else None
    if present and None not in (messages := list(map(as_messages, present))):
        return _profile_messages(name, [each for each in messages if each is not None])
    if isinstance(first, str) and first.startswith("["):
        parsed = list(map(_parse_list, present))
        is_list = all(isinstance(cell, list) for cell in parsed) and as_messages(parsed[0]) is None
        present, first = (parsed, parsed[0]) if is_list else (present, first)
    if isinstance(first, Sequence) and not isinstance(first, str | bytes):
        parts = [part for cell in present if isinstance(cell, Sequence) for part in cell]
        if parts and not any(isinstance(part, str | int | float) for part in parts):
            return _profile_spans(name, present)
        return ColumnProfile(name, "list", present, Counter(map(str, parts)))
    if isinstance(first, bytes) or (isinstance(first, Mapping) and {"bytes", "path"} & first.keys()):
        return ColumnProfile(name, "image", present, Counter())
    if isinstance(first, Mapping):
        return ColumnProfile(name, "other", present, Counter())
    counts = Counter(map(_as_label, present))
    kind = _kind_of(name, counts, len(present))
    is_short = len(counts) <= _MAX_COMPARED and sum(map(count_tokens, counts)) < _MAX_LABEL_TOKENS * len(counts)
    is_named_text = name.lower() in _TEXT_NAMES
    if kind in ("class", "text") and is_short and not is_named_text and (separated := find_lists(counts)) is not None:
        separator, _ = separated
        labels = Counter(part.strip() for cell in present for part in str(cell).split(separator))
        return ColumnProfile(name, "list", present, labels, separator)
    return ColumnProfile(name, kind, present, counts)


def _profile_spans(name: str, cells: Sequence[object]) -> ColumnProfile:
    """Return the profile of a column of lists of objects, which may be spans."""
    try:
        spans = [parse_spans(cell) or [] for cell in cells]
    except ValueError:
        return ColumnProfile(name, "other", cells, Counter())
    return ColumnProfile(name, "spans", spans, Counter(span["label"] for row in spans for span in row))


def _profile_messages(name: str, conversations: Sequence[Sequence[Mapping[str, object]]]) -> ColumnProfile:
    """Return the profile of a column of chat messages, whose cells are the texts that a task reads."""
    try:
        return ColumnProfile(name, "messages", list(map(join_messages, conversations)), Counter())
    except ValueError:
        return ColumnProfile(name, "other", conversations, Counter())


def warnings_of(table: TableProfile, roles: Mapping[str, list[str]], separator: str) -> list[str]:
    """Return the warnings of a source about the first rows of a table.

    Args:
        table: The table.
        roles: The columns of each role that a task reads.
        separator: The separator of lists in one cell.

    Raises:
        DataError: Some of the rows cannot be used in these roles.
    """

    def describe_role(role: str) -> str:
        names = roles[role] if role == "features" or len(roles[role]) > 1 else roles[role][0]
        return describe_columns(role if role in ("text", "label") else f"columns.{role}", names)

    names = [column.name for column in table.columns]
    checked = Table.for_roles(roles, list(roles), describe_role, separator, names)
    positions = [names.index(name) for name in checked.columns]
    records = [
        (row_id(0, number), f"{table.path}, row {number}", [cells[position] for position in positions])
        for number, cells in enumerate(table.first_rows, 1)
    ]
    checked.scan(lambda: iter(records))
    for _ in checked.training_samples(iter(records), [table.path.parent]):
        pass
    return [
        message.replace("{place}", f"{table.path}, row {split_row_id(row)[1]}") for message, row in checked.warnings
    ]


def feature_warnings(table: TableProfile, name: str) -> list[str]:
    """Return the warnings that a source has about a column of the first rows if it is a feature."""
    position = [column.name for column in table.columns].index(name)
    column = FeatureColumn(name)
    for number, cells in enumerate(table.first_rows, 1):
        if not _is_missing(cells[position]):
            column.add(cells[position], number)
    return [text.replace("{place}", f"row {row}") for text, row in column.warnings()]


def leaking_columns(table: TableProfile, features: Sequence[str], target: str) -> list[str]:
    """Return the features that give the target away in the first rows."""
    names = [column.name for column in table.columns]
    leaks = Leaks()
    for row, cells in enumerate(table.first_rows):
        values = {name: _hashable(cell) for name, cell in zip(names, cells, strict=True)}
        leaks.add({name: values[name] for name in features}, values[target], row)
    return leaks.names()


def _hashable(cell: object) -> object:
    return str(cell) if isinstance(cell, list | dict) else cell


def _kind_of(name: str, counts: Counter[str], num_cells: int) -> Kind:
    if not name.strip():
        return "identifier"  # often the index of a data frame; a config cannot name it
    if len(counts) < 2:
        return "constant" if counts and num_cells > 1 else "empty" if not counts else "text"
    values = list(counts)
    compared = values[:_MAX_COMPARED]
    is_distinct = len(counts) == num_cells
    if all(map(is_number, compared)) and all(map(is_number, values)):
        return "identifier" if is_distinct and (_counts_rows(compared) or IDENTIFIER.search(name)) else "number"
    if all(DATE.fullmatch(value.strip()) for value in compared):
        return "date"
    if sum(value.lower().endswith(IMAGE_SUFFIXES) for value in compared) > _MOST * len(compared):
        return "image"
    words = sum(map(count_tokens, compared)) / len(compared)
    is_named_text = name.lower() in _TEXT_NAMES
    if len(counts) <= min(_MAX_CLASSES, num_cells / 2) and not is_named_text and words < _MAX_LABEL_TOKENS:
        return "class"
    num_numbers = sum(is_number(value) or has_number_notation(value.strip()) for value in compared)
    if num_numbers > _MOST * len(compared) and not IDENTIFIER.search(name):
        return "mixed"
    if is_distinct and num_cells > 5 and (words < 1.2 or (words < 2 and IDENTIFIER.search(name))):
        return "identifier"
    return "mixed" if sum(map(is_number, compared)) > len(compared) / 2 else "text"


def _counts_rows(values: Sequence[str]) -> bool:
    numbers = [float(value) for value in values]
    return len(numbers) > 5 and all(after == before + 1 for before, after in pairwise(numbers))


def _is_missing(cell: object) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _as_label(cell: object) -> str:
    """Return a cell as the label that the sources read: 3.0 and True are `3` and `1`."""
    return str(int(cell)) if isinstance(cell, bool | float) and float(cell).is_integer() else str(cell)


def _parse_list(cell: object) -> object:
    try:
        parsed = json.loads(cell) if isinstance(cell, str) else cell
    except JSON_ERRORS:
        return cell
    return parsed if isinstance(parsed, list) else cell


def _find_separator(path: Path) -> str | None:
    """Return the separator of a CSV or TSV file if it is not the one of its suffix."""
    suffix = format_suffix(path) or ""
    if not suffix.startswith((".csv", ".tsv")):
        return None
    usual = "," if suffix.startswith(".csv") else "\t"
    header = next((line for line in first_lines(path, 20) if line.strip()), "")
    counts = {separator: header.count(separator) for separator in _SEPARATORS}
    best = max(counts, key=lambda separator: counts[separator])
    return None if counts[usual] or not counts[best] else _SEPARATORS[best]


def first_lines(path: Path, count: int) -> Iterator[str]:
    """Yield the first lines of a text file with their ends; bytes that are not UTF-8 are replaced.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        yield from (line for _, line in zip(range(count), LineReader(path), strict=False))
    except READ_ERRORS as error:
        raise unreadable_error(path, error) from error


def _check_header(path: Path, names: Sequence[str], usable: Sequence[str]) -> None:
    """Raise DataError if the first line does not name columns but is a row itself."""
    numbers = [float(name) for name in names if is_number(name)]
    are_positions = len(numbers) > 1 and all(b == a + 1 for a, b in pairwise(numbers))
    if (numbers and not are_positions) or any(count_tokens(name) > 12 for name in names):
        listed = ",".join(f"column_{number}" for number in range(1, len(names) + 1))
        problem = "its first line looks like a row instead of the names of the columns"
        raise DataError(format_error(str(path), problem, f"Begin the file with a line of names, such as {listed}"))
    if not usable:
        problem = "has no column with a name of its own"
        raise DataError(format_error(str(path), problem, "Give each column a different name", value=list(names)))
