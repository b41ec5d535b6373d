"""Answers to a file or to standard output, one by one: JSON lines, CSV or Parquet."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from trainer.errors import ConfigError, format_error

Write = Callable[[Mapping[str, Any]], None]

SUFFIXES = (".jsonl", ".csv", ".parquet")
_ROWS = 1_000
_ERROR = "error"


def check_output(path: Path) -> None:
    """Raises ConfigError where a file cannot be written, as far as that can be known before."""
    if path.suffix.lower() not in SUFFIXES:
        remedy = f"Known: {', '.join(SUFFIXES)}"
        raise ConfigError(format_error("output", "is of no known kind", remedy, value=str(path)))
    if path.is_dir() or not path.absolute().parent.is_dir():
        problem = "is a folder" if path.is_dir() else "its folder is not there"
        raise ConfigError(format_error("output", problem, value=str(path)))


@contextmanager
def writing(path: Path | None) -> Iterator[Write]:
    """What writes answers; a file appears under its name when all are in it, standard output (None) at once."""
    if path is None:
        yield _to_stdout
        return
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    kinds: dict[str, Callable[[IO[bytes]], Any]] = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    try:
        with partial.open("wb") as file:
            with kinds[path.suffix.lower()](file) as write:
                yield write
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _to_stdout(answer: Mapping[str, Any]) -> None:
    sys.stdout.write(_json(answer) + "\n")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@contextmanager
def _jsonl(file: IO[bytes]) -> Iterator[Write]:
    yield lambda answer: _written(file, _json(answer) + "\n")


@contextmanager
def _csv(file: IO[bytes]) -> Iterator[Write]:
    """A header, then a row each; what is no text or number is JSON."""

    class Lines:
        def write(self, line: str) -> None:
            _written(file, line)

    writer = csv.writer(Lines(), lineterminator="\n")

    def add(names: list[str], answers: list[Mapping[str, Any]]) -> None:
        if not file.tell():
            writer.writerow(names)
        for answer in answers:
            writer.writerow([_cell(answer.get(name)) for name in names])

    with _with_columns(add) as write:
        yield write


@contextmanager
def _parquet(file: IO[bytes]) -> Iterator[Write]:
    """Texts, numbers and lists of numbers as such; what is none of these is JSON."""
    import pyarrow
    from pyarrow import parquet

    schema: list[Any] = []
    writers: list[Any] = []

    def add(names: list[str], answers: list[Mapping[str, Any]]) -> None:
        if not writers:
            first = next((answer for answer in answers if _ERROR not in answer), {})
            schema.extend(pyarrow.field(name, _type(name, first.get(name))) for name in names)
            writers.append(parquet.ParquetWriter(file, pyarrow.schema(schema)))
        columns = [
            pyarrow.array([_native(answer.get(each.name), each.type) for answer in answers], type=each.type)
            for each in schema
        ]
        writers[0].write_table(pyarrow.Table.from_arrays(columns, schema=pyarrow.schema(schema)))

    try:
        with _with_columns(add) as write:
            yield write
    finally:
        for writer in writers:
            writer.close()


@contextmanager
def _with_columns(add: Callable[[list[str], list[Mapping[str, Any]]], None]) -> Iterator[Write]:
    """What writes answers in groups under the columns of the first one that is no error, and `error`."""
    names: list[str] = []
    waiting: list[Mapping[str, Any]] = []

    def write(answer: Mapping[str, Any]) -> None:
        if not names and _ERROR not in answer:
            names.extend([*answer, _ERROR])
        waiting.append(answer)
        if names and len(waiting) >= _ROWS:
            add(names, waiting)
            waiting.clear()

    yield write
    add(names or [_ERROR], waiting)


def _written(file: IO[bytes], text: str) -> None:
    file.write(text.encode())


def _cell(value: Any) -> Any:
    return _json(value) if isinstance(value, list | dict) else value


def _type(name: str, value: Any) -> Any:
    import pyarrow

    if isinstance(value, str) or name == _ERROR:
        return pyarrow.string()
    if value is None or isinstance(value, int | float):
        return pyarrow.float64()
    return pyarrow.list_(pyarrow.float64()) if _is_numbers(value) else pyarrow.string()


def _native(value: Any, kind: Any) -> Any:
    """A value as one of a column; JSON in one of texts."""
    import pyarrow

    return _cell(value) if kind == pyarrow.string() else value


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, int | float) for each in value)
