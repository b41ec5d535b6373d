"""The columns of a file by their names, and what is said of those that are not there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.errors import DataError, did_you_mean, format_error

_NEAR = "Did you mean "


class ColumnError(Exception):
    """A file has none or several columns of some names; the arguments are those and the file's names."""


def places_of(names: Sequence[str], columns: Sequence[str]) -> list[int]:
    """Where `columns` stand among the `names` of a file."""
    if wrong := [column for column in columns if names.count(column) != 1]:
        raise ColumnError(wrong, names)
    return [names.index(column) for column in columns]


def column_fault(path: Path, wrong: Sequence[str], names: list[str], named_by: str | None) -> str:
    """The message of columns of which there is none, or more than one."""
    counts = {column: names.count(column) for column in wrong}
    problems = [f"{count} columns {column!r}" if count else f"no column {column!r}" for column, count in counts.items()]
    remedy = f"It has {', '.join(map(repr, names))}; name them by {named_by}"
    hints = [hint for column in wrong if (hint := did_you_mean(column, names)).startswith(_NEAR)]
    if len(names) == 1 and not set(",;|\t").isdisjoint(names[0]):
        remedy += ", and what separates them by data.separator"
    elif hints:
        remedy = f"{_NEAR}{' and '.join(hint.removeprefix(_NEAR) for hint in hints)}? {remedy}"
    return format_error(str(path), f"has {' and '.join(problems)}", remedy)


def lacking(place: str, item: Mapping[str, Any], columns: Sequence[str], named_by: str) -> DataError | None:
    """What is wrong with an object that lacks some of the columns; None where it has them all."""
    absent = [column for column in columns if column not in item]
    if not absent:
        return None
    problem = f"has no {'column' if len(absent) == 1 else 'columns'} {', '.join(map(repr, absent))}"
    there = f"It has {', '.join(map(repr, item))}; name them by {named_by}" if item else f"Name them by {named_by}"
    return DataError(format_error(place, problem, there))
