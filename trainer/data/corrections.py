"""Corrected labels: a CSV file that names rows of the data by file and number, with the label there and a new one."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.data.data_files import content_digest
from trainer.data.line_reader import unreadable_error
from trainer.errors import DataError, RowErrors, did_you_mean, format_error
from trainer.protocols import HasColumns, LocatesRows, Source

if TYPE_CHECKING:
    from datasets import Dataset

_KEY = "data.corrections"
_COLUMNS = ("file", "row", "label", "correction")
_OLD_ROW = "line"
"""The name of the column `row` in the lists of earlier versions."""


class _Correction(NamedTuple):
    """A correction: its place in the CSV file, the label in the data, and the new one."""

    place: str
    label: str
    correction: str


class Corrections:
    """A source that is another one with corrected labels; its splits and folds stay as they are.

    Args:
        source: The other source.
        path: A CSV file with the columns `file`, `row` (the number of the row in that file, as in error messages),
            `label` and `correction`, such as `label_errors.csv` of a sweep over folds; rows without a correction are
            left out.
    """

    def __init__(self, source: Source, path: str) -> None:
        self._source = source
        self._path = Path(path)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the source and of the content of the file."""
        parts = (self._source.fingerprint, "corrections", content_digest(self._path))
        return blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the splits with the corrected labels.

        Raises:
            DataError: A correction names no row, a row with another label, or a class that no row of the data has.
        """
        if "label" not in roles or not isinstance(self._source, LocatesRows):
            problem = (
                "needs a task with one class for each row, and a source that knows the file and number of its rows"
            )
            raise DataError(format_error(_KEY, problem, "Leave it out", value=str(self._path)))
        waiting = self._read()
        errors = RowErrors()
        corrected = {}
        splits = self._source.load(roles)
        # A misspelt class would become a class of its own, or an error that names the file of the data.
        known = {label for rows in splits.values() for label in rows.unique("label")}
        for place, label in ((each.place, each.correction) for each in waiting.values()):
            if label not in known:
                problem = "no row of the data has this class"
                remedy = did_you_mean(label, sorted(known))
                errors.add(format_error(f"{place}, column 'correction'", problem, remedy, value=label))
        for split, rows in splits.items():
            labels: Any = rows["label"][:]
            is_changed = False
            for position, row in enumerate(rows["row"]):
                file, number = self._source.locate_row(split, row)
                if (item := waiting.pop((file or "", number), None)) is None:
                    continue
                if labels[position] != item.label:
                    problem = f"the label of {self.describe_row(split, row)} is {labels[position]!r}"
                    remedy = "Correct the row of the corrections, or leave it out"
                    errors.add(format_error(item.place, problem, remedy, value=item.label))
                labels[position], is_changed = item.correction, True
            feature = rows.features["label"]
            corrected[split] = (
                rows.remove_columns("label").add_column("label", labels, feature=feature) if is_changed else rows
            )
        for (file, number), item in waiting.items():
            problem = f"the data has no row {number} of {file!r}" if file else f"the data has no row {number}"
            errors.add(format_error(item.place, problem, "Write file and row as label_errors.csv does"))
        errors.raise_if_any()
        return corrected

    def _read(self) -> dict[tuple[str, int | None], _Correction]:
        """Return the corrections by file and row."""
        try:
            with self._path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.DictReader(file)
                names = [*(reader.fieldnames or ())]
                if "row" not in names:
                    names = ["row" if name == _OLD_ROW else name for name in names]
                    reader.fieldnames = names
                if missing := [name for name in _COLUMNS if name not in names]:
                    remedy = f"Its columns are {', '.join(_COLUMNS)}"
                    raise DataError(format_error(str(self._path), f"has no column {missing[0]!r}", remedy))
                rows = [(number, row) for number, row in enumerate(reader, 1) if (row["correction"] or "").strip()]
        except OSError as error:
            raise unreadable_error(self._path, error) from error
        except (UnicodeDecodeError, csv.Error) as error:
            problem = f"cannot be read as CSV ({error})"
            raise DataError(format_error(str(self._path), problem, "Save it as CSV in UTF-8")) from error
        corrections: dict[tuple[str, int | None], _Correction] = {}
        errors = RowErrors()
        for number, row in rows:
            place = f"{self._path}, row {number}"
            if not (row["row"] or "").isdecimal():
                errors.add(format_error(f"{place}, column 'row'", "must be the number of a row", value=row["row"]))
                continue
            key = (row["file"] or "", int(row["row"]))
            if key in corrections:
                errors.add(format_error(place, f"corrects the same row as {corrections[key].place}", "Keep one"))
            corrections[key] = _Correction(place, row["label"] or "", row["correction"].strip())
        errors.raise_if_any()
        if not corrections:
            problem = "has no corrections"
            raise DataError(format_error(str(self._path), problem, "Write the right labels into its column correction"))
        return corrections

    def describe_row(self, split: str, row: int) -> str:
        """Return the origin of a row, as the source does."""
        return self._source.describe_row(split, row)

    def locate_row(self, split: str, row: int) -> tuple[str | None, int | None]:
        """Return the file of a row and its number there, as the source does."""
        return self._source.locate_row(split, row) if isinstance(self._source, LocatesRows) else (None, None)

    def column_names(self, split: str) -> list[str]:
        """Return the columns of a split, as the source does; none if its rows have no columns."""
        return self._source.column_names(split) if isinstance(self._source, HasColumns) else []

    def read_columns(self, split: str, names: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        """Yield the column `row` and the cells of some columns, as the data has them: without corrections."""
        assert isinstance(self._source, HasColumns), "there are no names"
        return self._source.read_columns(split, names)

    def describe_role(self, role: str) -> str:
        """Return the user's name for the column of a role."""
        return self._source.describe_role(role)
