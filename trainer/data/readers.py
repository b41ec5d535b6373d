"""Read records of CSV, TSV, JSON, JSON Lines, Parquet and Arrow files, one by one.

Values are never guessed: a cell of a CSV file is a string, even if it is `None` or `007`. A problem is a `DataError`
that names the file and the line.
"""

from __future__ import annotations

import csv
import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from trainer.data.cells import short_repr
from trainer.data.line_reader import (
    READ_ERRORS,
    LineReader,
    decode_line,
    first_line_of,
    long_line_error,
    unreadable_error,
)
from trainer.data.swallowed_rows import SwallowedRows
from trainer.display import counted, list_some
from trainer.errors import DataError, RowErrors, did_you_mean, format_error
from trainer.files.untrusted import JSON_ERRORS, LIMITS, Unpacked, describe_json_error, open_input, open_unpacked
from trainer.protocols import Row

Records = Iterator[Sequence[object]]
RecordsOrErrors = Iterator[Sequence[object] | DataError]
"""Records, with an error in the place of each broken one."""

_BATCH_ROWS = 1_024
"""Rows of a Parquet or Arrow file that are Python objects at a time."""

_FEWEST_ROWS = 4
_DECODED_BYTES = 1 << 30
"""Bytes of a column of a Parquet file that may be decoded together, unless these are fewer rows than the fewest."""

_MAX_LIST_LINES = 16
"""Longest JSON list, which is parsed at once, in lines of the largest size."""

_CHUNK = 1 << 16
"""Bytes that are read at once to find the first character of a file."""

_MAX_LISTED = 20
"""Columns that a message lists."""

_DID_YOU_MEAN = "Did you mean "
_JSON_REMEDY = 'Write one object per line, {"text": ..., "label": ...}, or one list of such objects'


def read_records(
    path: Path,
    columns: Sequence[str],
    *,
    separator: str | None,
    quote: str | None,
    column_remedy: str,
    on_doubt: Callable[[str], None] | None = None,
) -> Records:
    """Yield the values of `columns`, record by record; a single JSON list is the only format that is read at once.

    Args:
        path: The file; its suffix (`format_suffix`) decides its format.
        columns: The columns, in this order.
        separator: The separator of the cells in CSV and TSV; None for the comma and the tab.
        quote: The quote around CSV and TSV cells that contain separators or line ends; None if quotes are ordinary.
        column_remedy: The remedy for missing columns, for a message: `set data.text and data.label`.
        on_doubt: Receives a message about a file that can be read, but probably not as it was meant.

    Raises:
        DataError: The file is empty or lacks a column, or some records are broken; the error lists them.
    """
    errors = RowErrors()
    for record in _read(path, columns, separator, quote, column_remedy, sparse=True, on_doubt=on_doubt):
        if isinstance(record, DataError):
            errors.add(record)
        elif not errors:
            yield record
    errors.raise_if_any()


def read_records_or_errors(
    path: Path, columns: Sequence[str], *, separator: str | None, quote: str | None, column_remedy: str
) -> RecordsOrErrors:
    """Yield the records as `read_records` does, with an error in the place of each broken one.

    A JSON object that lacks a column is broken here, whereas `read_records` treats the value as missing: in the input
    of a trained model, an absent name is a mistake. null is a missing value in both.

    Raises:
        DataError: The file is empty, cannot be read, lacks a column in its header, or is broken as a whole.
    """
    return _read(path, columns, separator, quote, column_remedy, sparse=False)


def _read(
    path: Path,
    columns: Sequence[str],
    separator: str | None,
    quote: str | None,
    column_remedy: str,
    *,
    sparse: bool,
    on_doubt: Callable[[str], None] | None = None,
) -> RecordsOrErrors:
    try:
        yield from _parse_file(path, columns, separator, quote, None if sparse else column_remedy, on_doubt)
    except _ColumnError as error:
        wrong, names = error.args
        raise DataError(_column_problem(path, wrong, names, column_remedy)) from None


def column_names(path: Path, *, separator: str | None, quote: str | None) -> list[str]:
    """Return the columns in the header, the first JSON object or the schema; an empty list for a file without rows.

    Raises:
        DataError: The file is empty, broken or not UTF-8.
    """
    names = next(_parse_file(path, None, separator, quote), [])
    if isinstance(names, DataError):
        raise names
    return [str(name) for name in names]


def format_suffix(path: Path) -> str | None:
    """Return the suffix that decides the format, such as `.csv` or `.jsonl.gz`; None for an unknown format."""
    suffixes = ("".join(path.suffixes[-2:]).lower(), path.suffix.lower())
    return next((suffix for suffix in suffixes if suffix in _PARSERS), None)


def format_suffixes() -> list[str]:
    """Return the suffixes of all formats."""
    return sorted(_PARSERS)


def _parse_file(
    path: Path,
    columns: Sequence[str] | None,
    separator: str | None,
    quote: str | None,
    column_remedy: str | None = None,
    on_doubt: Callable[[str], None] | None = None,
) -> RecordsOrErrors:
    """Yield the values of `columns`, record by record; without `columns`, yield the names of all columns once.

    With `column_remedy`, a JSON object that lacks a column is broken.
    """
    suffix = format_suffix(path)
    assert suffix is not None
    try:
        if path.stat().st_size == 0:
            raise DataError(format_error(str(path), "is empty", "Name another file"))
        parse = _PARSERS[suffix]
        if parse is _parse_json:
            parse = partial(_parse_json, column_remedy=column_remedy)
        elif on_doubt is not None and isinstance(parse, partial):
            parse = partial(parse, on_doubt=on_doubt)
        yield from parse(path, columns, separator, quote)
    except READ_ERRORS as error:
        raise unreadable_error(path, error) from error


def _parse_csv(
    path: Path,
    columns: Sequence[str] | None,
    separator: str | None,
    quote: str | None,
    *,
    default_separator: str,
    on_doubt: Callable[[str], None] | None = None,
) -> RecordsOrErrors:
    csv.field_size_limit(LIMITS.line_bytes)  # the default rejects cells beyond 128 KiB
    lines = LineReader(path)
    delimiter = separator or default_separator
    swallowed = None if on_doubt is None or quote is None else SwallowedRows(path, delimiter, quote)
    own_lines: list[str] = []
    reader = csv.reader(
        iter(lines) if swallowed is None else _copied(lines, own_lines),
        delimiter=delimiter,
        quotechar=quote,
        quoting=csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL,
        strict=True,
    )
    header: list[str] = []
    positions: list[int] = []
    for line, cells in _csv_records(path, reader, lines, own_lines):
        if not header:
            if isinstance(cells, DataError):
                raise cells
            header = cells
            if columns is None:
                yield header
                return
            positions = _column_positions(header, columns)
        elif isinstance(cells, DataError):
            yield cells
        elif len(cells) != len(header):
            problem = f"expected {counted(len(header), 'cell')} as in the header"
            remedy = f"Quote cells that contain {reader.dialect.delimiter!r} or a line end"
            yield DataError(format_error(f"{path}, line {line}", problem, remedy, value=len(cells)))
        else:
            if swallowed is not None:
                swallowed.add(line, own_lines, cells)
            yield [cells[position] for position in positions]
    if swallowed is not None and on_doubt is not None and (doubt := swallowed.find()):
        on_doubt(doubt)


def _csv_records(
    path: Path, reader: Any, lines: LineReader, own_lines: list[str]
) -> Iterator[tuple[int, list[str] | DataError]]:
    """Yield the first line and the cells of each record that is not empty, or the reason why it is broken.

    Args:
        path: The file, for messages.
        reader: The `csv.reader` of the lines.
        lines: The lines.
        own_lines: Is emptied before each record.
    """
    while True:
        line = reader.line_num + 1
        own_lines.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield line, lines.take_error() or _broken_csv(path, line, error)
            continue
        line_error = lines.take_error()
        if cells is None:
            return
        if cells:
            yield line, line_error or cells


def _copied(lines: Iterable[str], copies: list[str]) -> Iterator[str]:
    """Yield lines and add each of them to a list."""
    for line in lines:
        copies.append(line)
        yield line


def _broken_csv(path: Path, line: int, error: csv.Error) -> DataError:
    remedy = "Double each quote inside a quoted cell, or set data.quote=null if quotes are ordinary characters"
    if "new-line character" in str(error):
        remedy = "Write its line ends as \\n, for example: tr '\\r' '\\n' < OLD > NEW"
        return DataError(format_error(f"{path}, line {line}", "a line ends in \\r", remedy))
    if "field limit" in str(error):
        remedy = "Close its quote, set data.quote=null if quotes are ordinary characters, or raise data.max_line_bytes"
    return DataError(format_error(f"{path}, line {line}", f"broken CSV: {error}", remedy))


def _parse_json(
    path: Path,
    columns: Sequence[str] | None,
    separator: str | None,
    quote: str | None,
    *,
    column_remedy: str | None = None,
) -> RecordsOrErrors:
    """Read one object per line, or one list of objects."""
    objects = _json_list(path) if _first_character(path) == b"[" else _json_lines(path)
    checked = False
    for place, item in objects:
        if isinstance(item, DataError):
            yield item
            continue
        if not isinstance(item, dict):
            problem = "expected an object" + (f" with the columns {', '.join(columns)}" if columns else "")
            yield DataError(format_error(place, problem, _JSON_REMEDY, value=type(item).__name__))
            continue
        if isinstance(item, _RepeatedKey):
            problem, remedy = "an object has a key twice", "Give each value a key of its own"
            yield DataError(format_error(place, problem, remedy, value=item.key))
            continue
        if columns is None:
            yield list(item)
            return
        if column_remedy is not None:
            yield missing_columns_error(place, item, columns, column_remedy) or [item[column] for column in columns]
            continue
        if not checked:
            _column_positions(list(item), columns)
            checked = True
        yield [item.get(column) for column in columns]


def _first_character(path: Path) -> bytes:
    with open_unpacked(path) as file:
        start = file.read(_CHUNK).removeprefix(BOM_UTF8).lstrip()
        while not start and (chunk := file.read(_CHUNK)):
            start = chunk.lstrip()
    return start[:1]


def _json_list(path: Path) -> Iterator[tuple[str, object]]:
    limit = _MAX_LIST_LINES * LIMITS.line_bytes
    with open_unpacked(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        problem = f"is a list of more than {limit} bytes, which would be read at once"
        raise DataError(format_error(str(path), problem, "Write one object per line, or raise data.max_line_bytes"))
    text = decode_line(content, str(path), 0)
    items = text if isinstance(text, DataError) else _load_json(path, 0, text.removeprefix(BOM_UTF8.decode()))
    if isinstance(items, DataError):
        raise items
    for number, item in enumerate(items, 1):
        yield f"{path}, item {number}", item


def _json_lines(path: Path) -> Iterator[tuple[str, object]]:
    lines = LineReader(path)
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f"{path}, line {number}", lines.take_error() or _load_json(path, number, line)


def _load_json(path: Path, line: int, text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_make_object)
    except JSON_ERRORS as error:
        number = line or getattr(error, "lineno", 1)
        return DataError(format_error(f"{path}, line {number}", describe_json_error(error), _JSON_REMEDY))


class _RepeatedKey(dict[str, Any]):
    """An object in which a key occurs twice, so that one of its values is lost."""

    key: str


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    item = dict(pairs)
    if len(item) == len(pairs):
        return item
    repeated = _RepeatedKey(item)
    repeated.key = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
    return repeated


def _parse_columnar(
    path: Path, columns: Sequence[str] | None, separator: str | None, quote: str | None
) -> RecordsOrErrors:
    """Read a Parquet or Arrow file batch by batch, and no columns except `columns`."""
    batches = _parquet_batches if path.suffix.lower() == ".parquet" else _arrow_batches
    count, unpacked = 0, Unpacked(path, path.stat().st_size)
    with _damage_named(path):
        for batch in batches(path, columns):
            if columns is None:
                yield batch
                return
            for start in range(0, batch.num_rows, _BATCH_ROWS):
                piece = batch.slice(start, _BATCH_ROWS)
                cells = [_within_limits(piece.column(column), unpacked) for column in columns]
                broken = {row for _, rows in cells for row in rows}
                records = zip(*(column.to_pylist() for column, _ in cells), strict=True)
                for row, record in enumerate(records):
                    yield long_line_error(f"{path}, row {count + row + 1}") if row in broken else record
                count += piece.num_rows


def _within_limits(cells: Any, unpacked: Unpacked) -> tuple[Any, Sequence[int]]:
    """Return cells without texts that are too long, and the rows of these; add the size of the texts to `unpacked`.

    Few bytes of a file can be many rows: a text that is stored once may be the cell of any number of rows, or any
    number of items of a list. So sizes are added before such texts are repeated in memory.
    """
    from pyarrow import DictionaryArray, compute, types

    texts = cells
    while types.is_list(texts.type) or types.is_large_list(texts.type):
        texts = texts.flatten()
    stored = texts.dictionary if types.is_dictionary(texts.type) else texts
    if not (types.is_string(stored.type) or types.is_large_string(stored.type)):
        return cells, ()
    sizes = compute.binary_length(stored)
    if stored is not texts:
        sizes = sizes.take(texts.indices)
    unpacked.add(compute.sum(sizes).as_py() or 0)
    if texts is not cells:
        return cells, ()
    too_long = compute.fill_null(compute.greater(sizes, LIMITS.line_bytes), False)
    rows = compute.indices_nonzero(too_long).to_pylist()
    if stored is texts:
        return compute.if_else(too_long, None, texts) if rows else texts, rows
    indices = compute.if_else(too_long, None, texts.indices) if rows else texts.indices
    return DictionaryArray.from_arrays(indices, stored).dictionary_decode(), rows


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn the errors of reading a damaged Parquet or Arrow file into a DataError."""
    import pyarrow

    try:
        yield
    # Damage can promise any size, and name any type, number, date or time zone.
    except (pyarrow.ArrowException, ArithmeticError, LookupError, MemoryError, ValueError) as error:
        remedy = "The file is damaged, or its suffix does not match its format"
        raise DataError(format_error(str(path), f"cannot be read: {first_line_of(error)}", remedy)) from error


def check_arrow_file(path: Path) -> None:
    """Check an Arrow file before a library maps it into memory: reading a damaged one there may end the process.

    Raises:
        DataError: It is damaged.
    """
    try:
        with _damage_named(path), _opened_arrow(path) as (_, batches):
            for batch in batches:
                _validated(batch)
    except OSError as error:  # pyarrow's error for a file that was cut
        raise DataError(format_error(str(path), f"cannot be read: {first_line_of(error)}")) from error


def _parquet_batches(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    from pyarrow import parquet

    with open_input(path) as source, parquet.ParquetFile(source) as file:
        if columns is None:
            yield file.schema_arrow.names
            return
        _column_positions(file.schema_arrow.names, columns)
        yield from map(_validated, file.iter_batches(_rows_at_once(file.metadata, columns), columns=list(columns)))


def _rows_at_once(metadata: Any, columns: Sequence[str]) -> int:
    """Return the rows of a Parquet file that are decoded together.

    Each may be the largest text of a dictionary, and nothing says how large that is: at most as large as its chunk.
    """
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    sizes: list[int] = [
        chunk.total_uncompressed_size
        for chunk in chunks
        if chunk.path_in_schema.partition(".")[0] in columns and chunk.has_dictionary_page
    ]
    return max(_FEWEST_ROWS, min(_BATCH_ROWS, _DECODED_BYTES // max([1, *sizes])))


def _arrow_batches(path: Path, columns: Sequence[str] | None) -> Iterator[Any]:
    with _opened_arrow(path) as (names, batches):
        if columns is None:
            yield names
            return
        _column_positions(names, columns)
        yield from map(_validated, batches)


@contextmanager
def _opened_arrow(path: Path) -> Iterator[tuple[list[str], Iterator[Any]]]:
    """Yield the columns and the batches of a file with a footer (Feather 2), or of a stream (the datasets library)."""
    import pyarrow

    # Not mapped into memory: a file that is cut while it is read would end the process.
    with open_input(path) as source:
        with_footer = source.read(6) == b"ARROW1"
        source.seek(0)
        file = pyarrow.ipc.open_file(source) if with_footer else pyarrow.ipc.open_stream(source)
        numbers = range(file.num_record_batches) if with_footer else ()
        yield file.schema.names, map(file.get_batch, numbers) if with_footer else iter(file)


def _validated(batch: Any) -> Any:
    """Return a batch whose offsets and texts are valid; the conversion to Python objects does not check them."""
    batch.validate(full=True)
    return batch


class _ColumnError(Exception):
    """Some columns are missing from a file or occur more than once; the arguments are these and the file's names."""


def _column_positions(names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Return the positions of `columns` among the `names` of a file."""
    counts = Counter(names)
    if wrong := [column for column in columns if counts[column] != 1]:
        raise _ColumnError(wrong, names)
    positions = {name: position for position, name in enumerate(names)}
    return [positions[column] for column in columns]


def _column_problem(path: Path, wrong: Sequence[str], names: list[str], column_remedy: str | None) -> str:
    """Return the message for columns that are missing or occur more than once."""
    available = Counter(names)
    counts = {column: available[column] for column in wrong}
    problems = [f"{count} columns {column!r}" if count else f"no column {column!r}" for column, count in counts.items()]
    if repeated := [column for column, count in counts.items() if count]:
        problem = f"has {' and '.join(problems)}"
        remedy = f"Give each column a name of its own: rename or remove one of {', '.join(map(repr, repeated))}"
        return format_error(str(path), problem, remedy)
    remedy = f"Its columns are {_listed(names)}; {column_remedy}"
    named = [name for name in names if name]
    hints = [hint for column in wrong if (hint := did_you_mean(column, named)).startswith(_DID_YOU_MEAN)]
    if len(names) == 1 and not set(",;|\t").isdisjoint(names[0]):
        remedy += ", and their separator with data.separator"
    elif hints:
        alternatives = " and ".join(hint.removeprefix(_DID_YOU_MEAN) for hint in hints)
        remedy = f"{_DID_YOU_MEAN}{alternatives}? {remedy}"
    return format_error(str(path), f"has {' and '.join(problems)}", remedy)


def _listed(names: Sequence[str]) -> str:
    return list_some([short_repr(name) for name in names], _MAX_LISTED)


def missing_columns_error(place: str, item: Row, columns: Sequence[str], column_remedy: str) -> DataError | None:
    """Return the error for a JSON object that lacks some of the columns; None if it has all of them."""
    missing = [column for column in columns if column not in item]
    if not missing:
        return None
    problem = f"has no {'column' if len(missing) == 1 else 'columns'} {', '.join(map(repr, missing))}"
    remedy = column_remedy[:1].upper() + column_remedy[1:]
    if item:
        remedy = f"Its columns are {_listed(list(item))}; {column_remedy}"
    return DataError(format_error(place, problem, remedy))


_PARSERS: dict[str, Callable[[Path, Sequence[str] | None, str | None, str | None], RecordsOrErrors]] = {
    ".csv": partial(_parse_csv, default_separator=","),
    ".tsv": partial(_parse_csv, default_separator="\t"),
    ".json": _parse_json,
    ".jsonl": _parse_json,
    ".parquet": _parse_columnar,
    ".arrow": _parse_columnar,
    ".feather": _parse_columnar,
}
_PARSERS |= {f"{suffix}.gz": _PARSERS[suffix] for suffix in (".csv", ".tsv", ".json", ".jsonl")}
