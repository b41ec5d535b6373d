"""Labels that are probably not what they are read as: numbers, dates, lists, missing values, repeated headers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from trainer.data.cells import is_number
from trainer.data.plausibility import COMPACT_DATE, DATE, MISSING, MONTH, UNIX_TIMES, ColumnWarning, is_code
from trainer.display import counted

_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+|[-+]?\d{1,3}(\.\d{3})+(,\d+)?")
_SPREADSHEET_DATE = re.compile(rf"\d{{1,2}}-{MONTH}")
_MANY_NUMBERS = 100
"""More labels that are whole numbers are probably amounts, unless they count from 0 or 1 and each has several rows."""
_MANY_ROWS = 5
_LIST_SEPARATORS = {"|": 0.1, ";": 0.1, ",": 0.5, "/": 0.5}
"""Separators of lists; of the labels with one, at least this share must be lists, because names contain commas too."""
_NUMBER_OR_DATE = re.compile(r"\d+,\d+|\d{1,3}(,\d{3})+|\d+(/\d+)+")


@dataclass
class LabelColumn:
    """The labels of the training data, seen one by one.

    Attributes:
        role: `label`, or `labels` for several in a row.
        name: The column's name.
        inputs: The roles of the inputs, which decide the remedy.
        columns: The names of all columns.
    """

    role: str
    name: str
    inputs: Sequence[str]
    columns: Sequence[str]
    _counts: Counter[str] = field(default_factory=Counter)
    _first_rows: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, row: int) -> None:
        """Add a label of a row."""
        self._counts[label] += 1
        self._first_rows.setdefault(label, row)

    def warnings(self) -> list[ColumnWarning]:
        """Return warnings about labels that are missing values, and about labels that are numbers or dates."""
        described = [self._describe_times() or self._describe_numbers()]
        missing = [label for label in self._counts if label.strip() in MISSING]
        described += [self._describe_missing(label) for label in missing if not is_code(label, self._counts)]
        described += [
            self._describe_lists(),
            self._describe_header(),
            self._describe_quotes(),
            self._describe_spreadsheet(),
        ]
        return [warning for warning in described if warning is not None]

    def _describe_missing(self, label: str) -> ColumnWarning:
        count = self._counts[label]
        problem = f"{counted(count, 'row', 'has')} the label {label!r}, the first is {{place}}, and it is a class"
        remedy = "Remove these rows" if self.role == "label" else "Remove this label from them"
        return ColumnWarning(f"{problem}. {remedy}, or rename the class if it is a real one.", self._first_rows[label])

    def _describe_header(self) -> ColumnWarning | None:
        is_rare = self._counts[self.name] <= max(1, self._counts.total() / 100)
        if self.name not in self._counts or not (is_rare or any(map(is_number, self.columns))):
            return None
        problem = f"{{place}} has the label {self.name!r}, which is the name of the column"
        remedy = "Remove repeated headers, or begin the file with a line that names the columns"
        return ColumnWarning(f"{problem}. {remedy}.", self._first_rows[self.name])

    def _describe_quotes(self) -> ColumnWarning | None:
        quoted = [label for label in self._counts if len(label) > 1 and label[0] == label[-1] == "'"]
        if not self._counts or len(quoted) < len(self._counts):
            return None
        problem = f"all labels are in single quotes, the first is {quoted[0]} in {{place}}"
        return ColumnWarning(f"{problem}. Set \"data.quote='\\''\".", self._first_rows[quoted[0]])

    def _describe_spreadsheet(self) -> ColumnWarning | None:
        dates = [label for label in self._counts if _SPREADSHEET_DATE.fullmatch(label)]
        if not dates:
            return None
        problem = f"the label {dates[0]!r} in {{place}} is probably a name that a spreadsheet has turned into a date"
        return ColumnWarning(f"{problem}. Write the name again.", self._first_rows[dates[0]])

    def _describe_times(self) -> ColumnWarning | None:
        labels = [label.strip() for label in self._counts]
        if len(labels) < 2:
            return None
        if all(DATE.fullmatch(label) or COMPACT_DATE.fullmatch(label) for label in labels):
            times = "dates"
        elif all(map(str.isdecimal, labels)):
            times = "Unix times"
            if not any(all(low <= float(label) < high for label in labels) for low, high in UNIX_TIMES.values()):
                return None
        else:
            return None
        label = next(iter(self._counts))
        problem = f"the labels are {times}, such as {label!r} in {{place}}, and each is a class"
        remedy = "Name the column of the classes instead"
        return ColumnWarning(f"{problem}. {remedy}, or replace them, such as by the year.", self._first_rows[label])

    def _describe_numbers(self) -> ColumnWarning | None:
        texts = [label for label in self._counts if not is_number(label)]
        if texts:
            if self.role == "labels" or not all(map(_DECIMAL_COMMA.fullmatch, texts)):
                return None
            problem = (
                f"the labels are numbers in another notation, such as {texts[0]!r} in {{place}}, and each is a class"
            )
            remedy = "Write numbers with a decimal point, such as 1234.5, or texts such as 'class 1'"
            return ColumnWarning(f"{problem}. {remedy}.", self._first_rows[texts[0]])
        fractions = [label for label in self._counts if not float(label).is_integer()]
        if not fractions and (len(self._counts) <= _MANY_NUMBERS or self._are_indices()):
            return None
        label = fractions[0] if fractions else next(iter(self._counts))
        problem = f"{len(self._counts)} different numbers, such as {label!r} in {{place}}, are read as classes"
        remedy = "Write texts such as 'class 1' if they are classes"
        task = {"features": "tabular_regression", "text": "regression"}.get("+".join(self.inputs))
        if task is not None:
            name = self.name if self.name.isidentifier() else f"'{self.name}'"
            remedy = f'To predict numbers, set task={task} "data.columns.value={name}". {remedy}'
        return ColumnWarning(f"{problem}. {remedy}.", self._first_rows[label])

    def _are_indices(self) -> bool:
        """Return whether the labels count from 0 or 1, and each has several rows."""
        numbers = [float(label) for label in self._counts]
        is_dense = min(numbers) in (0, 1) and max(numbers) - min(numbers) < 2 * len(numbers)
        return is_dense and self._counts.total() >= _MANY_ROWS * len(numbers)

    def _describe_lists(self) -> ColumnWarning | None:
        """Describe labels that contain several other labels: `red|blue` next to `red` and `blue`.

        In lists a part has no fixed place: `a;b` and `b;c`. In paths such as `news/sport` and `news/art` each part has.
        """
        separated = find_lists(self._counts)
        if separated is None:
            return None
        separator, lists = separated
        labels = counted(len(lists), "label", "contains", of=len(self._counts))
        problem = f"{labels} several other labels, such as {lists[0]!r} in {{place}}"
        if self.role == "label":
            problem += ", and each is read as one class"
            name = self.name if self.name.isidentifier() else f"'{self.name}'"
            remedy = f'For several labels in a row, use task=multilabel_classification "data.columns.labels={name}"'
        else:
            remedy = "Separate the labels of a row by"
        remedy = f"{remedy} \"data.list_separator='{separator}'\". If each is one class, write it without {separator!r}"
        return ColumnWarning(f"{problem}. {remedy}.", self._first_rows[lists[0]])


def find_lists(names: Collection[str]) -> tuple[str, list[str]] | None:
    """Return the separator of labels that are lists of labels, and these labels; None if there are too few."""
    for separator, share in _LIST_SEPARATORS.items():
        parts = {name: _split(name, separator) for name in names}
        parts = {name: each for name, each in parts.items() if len(each) > 1}
        single = set(names) - parts.keys()
        if not _moving_parts(parts, single):
            continue
        known, moving = single | _shared_parts(parts), _moving_parts(parts, ())
        are_most = len(parts) >= len(names) / 2  # then many of them may have parts of their own
        lists = [
            name for name, each in parts.items() if known.issuperset(each) or (are_most and not moving.isdisjoint(each))
        ]
        if len(lists) >= max(2, share * len(parts)):
            return separator, lists
    return None


def _split(name: str, separator: str) -> list[str]:
    if separator not in name or _NUMBER_OR_DATE.fullmatch(name):
        return []
    return [part.strip() for part in name.split(separator)]


def _shared_parts(parts: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the parts that occur in several names."""
    counts = Counter(part for each in parts.values() for part in set(each))
    return {part for part, count in counts.items() if count > 1}


def _moving_parts(parts: Mapping[str, Sequence[str]], single: Iterable[str]) -> set[str]:
    """Return the parts that occur in different places of names; a single name is in the first place."""
    first: dict[str, int] = dict.fromkeys(single, 0)
    places = (enumerate(each) for each in parts.values())
    return {part for each in places for place, part in each if first.setdefault(part, place) != place}
