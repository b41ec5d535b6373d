"""Input and output files of predictions: checked before anything heavy is loaded, and written as JSON Lines, CSV or
Parquet."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, NamedTuple

from trainer.data.cells import IMAGE_SUFFIXES
from trainer.data.line_reader import first_line_of
from trainer.data.readers import format_suffix
from trainer.display import escape_controls
from trainer.errors import ConfigError, DataError, format_error, raise_if_any
from trainer.files.atomic_io import refuse_to_replace, replaced_file
from trainer.layout import expand_home
from trainer.protocols import Prediction
from trainer.shapes import to_json

Write = Callable[[Prediction], None]

LINE_SUFFIXES = (".txt", ".txt.gz")
"""Suffixes of files whose lines are the rows."""

OUTPUT_SUFFIXES = (".jsonl", ".csv", ".parquet")
INPUT_FORMATS = "Allowed: .csv, .tsv, .json, .jsonl, .txt (these also as .gz), .parquet, .arrow, .feather, and images"

_FILE_NAME = re.compile(r"(?![{\[])\S*(/\S*|\.[A-Za-z][A-Za-z0-9]{0,9})")
"""Texts that are taken for the name of a file even if it does not exist: no JSON, no white space, a `/` or a suffix."""

_GROUP_SIZE = 1_000
"""Rows that are written to CSV and Parquet at once."""

_ERROR = "error"
"""The column that contains why a row could not be used."""


class PredictionPaths(NamedTuple):
    """The inputs and the output of `trainer predict`.

    Attributes:
        input: A file or a folder, a text, or None for standard input.
        corpus: The file with the texts among which neighbors are searched.
        output: The file for the predictions; None for standard output.
    """

    input: Path | str | None
    corpus: Path | None
    output: Path | None


def resolve_paths(input: str | None, corpus: str | None, output: str | None, *, force: bool = False) -> PredictionPaths:
    """Return the files and texts that the keys of `trainer predict` name.

    Raises:
        ConfigError: Every problem with them that shows before they are read.
    """
    problems: list[str] = []
    inputs: dict[str, Path | str | None] = {}
    for key, value in (("input", input), ("corpus", corpus)):
        try:
            inputs[key] = _resolve_input(key, value)
        except ConfigError as error:
            problems += error.messages
    corpus_path = inputs.get("corpus")
    if isinstance(corpus_path, str):
        problems.append(format_error("corpus", "must be a file", value=corpus))
    target = None if output in (None, "-") else Path(expand_home(str(output)))
    if target is not None:
        files = {key: path.resolve() for key, path in inputs.items() if isinstance(path, Path)}
        same = [key for key, path in files.items() if target.exists() and target.resolve() == path]
        try:
            check_output(target, force=force or bool(same))
        except ConfigError as error:
            problems += error.messages
        for key in same:
            problems.append(format_error("output", f"is the same file as {key}", "Name another file", value=output))
    raise_if_any(*problems)
    assert not isinstance(corpus_path, str)
    return PredictionPaths(inputs.get("input"), corpus_path, target)


def input_problems(config: Mapping[str, Any]) -> list[str]:
    """Return the problems of the files that a prediction reads and writes, before anything heavy is loaded."""
    keys = ("input", "corpus", "output")
    if not all(isinstance(config.get(key, 0), str | None) for key in keys):
        return []
    try:
        resolve_paths(*(config[key] for key in keys), force=config.get("force") is True)
    except ConfigError as error:
        return list(error.messages)
    return []


def is_readable(path: Path) -> bool:
    """Return whether the name of a file or folder determines how it is read."""
    return path.is_dir() or has_lines(path) or path.suffix.lower() in IMAGE_SUFFIXES or format_suffix(path) is not None


def has_lines(path: Path) -> bool:
    """Return whether each line of the file is a row."""
    return path.name.lower().endswith(LINE_SUFFIXES)


def _resolve_input(key: str, value: str | None) -> Path | str | None:
    """Return the path if a file or folder of that name exists, else the text itself; None for standard input."""
    if value in (None, "-"):
        return None
    if not value:  # as a path it would be the working directory
        return value
    path = Path(expand_home(value) if "/" in value else value)  # `~` alone begins a text
    try:
        exists = path.exists()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return value
    if exists and not is_readable(path):
        raise ConfigError(format_error(key, "unknown file format", INPUT_FORMATS, value=value))
    if exists and not (path.is_file() or path.is_dir()):
        problem, remedy = "is a pipe or a device, not a file", "Read its rows from standard input with input=-"
        raise ConfigError(format_error(key, problem, remedy, value=value))
    if exists:
        return path
    if not _FILE_NAME.fullmatch(value):
        return value
    siblings = [other.name for other in path.parent.iterdir() if is_readable(other)] if path.parent.is_dir() else []
    similar = get_close_matches(path.name, siblings, n=1, cutoff=0.7)
    remedy = f"Did you mean {path.parent / similar[0]}?" if similar else f"Paths are relative to {Path.cwd()}."
    if key == "input":
        remedy += " To predict a text that looks like a file name, pass it through standard input with input=-"
    raise ConfigError(format_error(key, "no such file", remedy.removesuffix("."), value=value))


def check_output(path: Path, *, force: bool) -> None:
    """Raise ConfigError if a file cannot be written, as far as that shows in advance."""
    if path.suffix.lower() not in OUTPUT_SUFFIXES:
        remedy = f"Allowed: {', '.join(OUTPUT_SUFFIXES)}"
        raise ConfigError(format_error("output", "unknown file format", remedy, value=str(path)))
    if path.is_dir() or not path.absolute().parent.is_dir():
        problem = "is a folder" if path.is_dir() else "its folder does not exist"
        raise ConfigError(format_error("output", problem, value=str(path)))
    refuse_to_replace("output", path, force=force)


@contextmanager
def open_output(path: Path | None) -> Iterator[Write]:
    """Yield a function that writes one prediction.

    A file gets its name only when it is complete. Standard output (`path` is None) gets each prediction at once.
    """
    if path is None:
        yield _write_to_stdout
        return
    writers: dict[str, Callable[[IO[bytes]], Any]] = {
        ".jsonl": _open_jsonl,
        ".csv": _open_csv,
        ".parquet": _open_parquet,
    }
    with replaced_file(path, ConfigError) as file, writers[path.suffix.lower()](file) as write:
        yield write


def _write_to_stdout(prediction: Prediction) -> None:
    sys.stdout.write(escape_controls(_to_json(prediction)) + "\n")


def _to_json(value: object) -> str:
    # Kept columns of Parquet and Arrow files may have values such as dates.
    return to_json(value, ensure_ascii=False, default=str)


@contextmanager
def _open_jsonl(file: IO[bytes]) -> Iterator[Write]:
    yield lambda prediction: _write_text(file, _to_json(prediction) + "\n")


@contextmanager
def _open_csv(file: IO[bytes]) -> Iterator[Write]:
    """Write a header, then one line per row; values that are neither text nor number are JSON."""

    class TextFile:
        def write(self, text: str) -> None:
            _write_text(file, text)

    writer = csv.writer(TextFile(), lineterminator="\n")

    def add(names: list[str], predictions: list[Prediction]) -> None:
        if not file.tell():
            writer.writerow(names)
        for prediction in predictions:
            writer.writerow([_to_cell(prediction.get(name)) for name in names])

    with _in_groups(add) as write:
        yield write


@contextmanager
def _open_parquet(file: IO[bytes]) -> Iterator[Write]:
    """Write texts, numbers and lists of numbers in columns of their type; other values are JSON."""
    import pyarrow
    from pyarrow import parquet

    schema: list[Any] = []
    writers: list[Any] = []

    def add(names: list[str], predictions: list[Prediction]) -> None:
        if not writers:
            usable = [prediction for prediction in predictions if _ERROR not in prediction]
            schema.extend(pyarrow.field(name, _column_type(name, [row.get(name) for row in usable])) for name in names)
            writers.append(parquet.ParquetWriter(file, pyarrow.schema(schema)))
        columns = []
        for field in schema:
            values = [_to_column(row.get(field.name), field.type) for row in predictions]
            try:
                columns.append(pyarrow.array(values, type=field.type))
            except pyarrow.ArrowException as error:
                problem = f"its values are not all {field.type} ({first_line_of(error)})"
                remedy = "Write a file that ends in .jsonl or .csv"
                raise DataError(format_error(f"column {field.name!r}", problem, remedy)) from error
        writers[0].write_table(pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(schema)))

    try:
        with _in_groups(add) as write:
            yield write
    finally:
        for writer in writers:
            writer.close()


@contextmanager
def _in_groups(add: Callable[[list[str], list[Prediction]], None]) -> Iterator[Write]:
    """Pass predictions on in groups. Columns: the fields of the first prediction without an error, and `error`."""
    names: list[str] = []
    waiting: list[Prediction] = []

    def write(prediction: Prediction) -> None:
        if not names and _ERROR not in prediction:
            names.extend([*prediction, _ERROR])
        waiting.append(prediction)
        if names and len(waiting) >= _GROUP_SIZE:
            add(names, waiting)
            waiting.clear()

    yield write
    add(names or [_ERROR], waiting)


def _write_text(file: IO[bytes], text: str) -> None:
    file.write(text.encode())


def _to_cell(value: object) -> object:
    return value if isinstance(value, str | int | float | None) else _to_json(value)


def _column_type(name: str, values: Sequence[object]) -> object:
    """Return the type of a column by the values of its first rows that could be used."""
    import pyarrow

    present = [value for value in values if value is not None]
    if name == _ERROR or any(isinstance(value, str) for value in present):
        return pyarrow.string()
    if present and all(type(value) is int for value in present):
        return pyarrow.int64()
    if all(isinstance(value, int | float) for value in present):
        return pyarrow.float64()
    return pyarrow.list_(pyarrow.float64()) if all(map(_is_numbers, present)) else pyarrow.string()


def _to_column(value: object, column_type: Any) -> object:
    """Return a value as its column stores it; JSON in a column of texts."""
    import pyarrow

    if column_type != pyarrow.string() or isinstance(value, str | None):
        return value
    return _to_json(value)


def _is_numbers(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, int | float) for each in value)
