"""Columns of tables that are probably not what they are read as: numbers with signs, dates, missing values as texts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import NamedTuple

from trainer.data.cells import is_number, short_repr
from trainer.display import counted

_MIN_ROWS = 20
"""A column with fewer values is not judged: few texts differ from each other by chance."""
_NUM_COMPARED = 10_000
"""Values of a column, from its start, that are compared with each other."""
_MOST = 0.9

_NUMBER = re.compile(r"[-+]?\d+([.,' ]\d{3})*([.,]\d+)?")
_UNITS = re.compile(r"[$€£¥₹%\s]|\b(EUR|USD|GBP|CHF|JPY)\b")
_QUANTITY = re.compile(rf"({_NUMBER.pattern}) ?[^\W\d_]{{1,4}}")
MONTH = "(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}"
    rf"|\d{{1,2}}\.?[- ]{MONTH}[a-z]*[- ]\d{{2,4}}|{MONTH}[a-z]* \d{{1,2}},? \d{{4}})([T ]\d{{1,2}}:\d{{2}}.*)?"
)
COMPACT_DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_SPREADSHEET_NUMBER = re.compile(r"\d\.\d+E\+(09|1\d)")
UNIX_TIMES = {"seconds": (1e9, 2e9), "milliseconds": (1e12, 2e12)}
"""Numbers in these ranges (from 2001 to 2033) are times if a whole column consists of them."""
_WIDE = 10
_THOUSANDS = re.compile(r"[1-9]\d{0,2}\.\d{3}")
_SENTINELS = (-99.0, -999.0, -9999.0, -99999.0)
"""Numbers that stand for a missing value in many data sets."""
_MANY_VALUES = 10
"""A column of quantities with fewer different ones may well be categories, such as `1st` and `2nd`."""
IDENTIFIER = re.compile(r"(?i:(^|[\W_])(id|uuid|guid|key|index|idx|row|no|nr))$|[a-z]I[Dd]$|^(Unnamed: \d+)?$")

MISSING = frozenset(
    ("#N/A", "#N/A N/A", "#NA", "-NaN", "-nan", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null", "")
)
"""Texts that pandas reads as missing values. Here only an empty cell is one, so these texts are names like others."""


def has_number_notation(text: str) -> bool:
    """Return whether a text is a number as people write it, such as `1.234,50 €`, `12 %` or `3,5`, and no date."""
    return bool(_NUMBER.fullmatch(_UNITS.sub("", text))) and not DATE.fullmatch(text)


class ColumnWarning(NamedTuple):
    """A warning about a column of the training data; `{place}` in it stands for the file and number of `row`."""

    message: str
    row: int


@dataclass
class FeatureColumn:
    """The values of a feature in the training data, seen one by one.

    Attributes:
        name: The column's name.
        is_numeric: True as long as every value is a number.
    """

    name: str
    is_numeric: bool = True
    _num_rows: int = 0
    _num_numbers: int = 0
    _num_dates: int = 0
    _num_with_units: int = 0
    _num_coded: int = 0
    _num_quantities: int = 0
    _num_compact_dates: int = 0
    _num_cut: int = 0
    _num_times: Counter[str] = field(default_factory=Counter)
    _num_grouped: int = 0
    _num_small: int = 0
    _first_grouped: tuple[str, int] | None = None
    _highest: float = -inf
    _sentinels: Counter[float] = field(default_factory=Counter)
    _first_sentinel: dict[float, int] = field(default_factory=dict)
    _lowest: float = inf
    _first_row: int = 0
    _first_text: tuple[object, int] | None = None
    _first_code: tuple[object, int] | None = None
    _first_missing: tuple[str, int] | None = None
    _num_missing: int = 0
    _counts_rows: bool = True
    _previous: float | None = None
    _compared: set[object] = field(default_factory=set)

    def add(self, value: object, row: int) -> None:
        """Add the value of a row; empty cells are left out."""
        self._first_row = self._first_row or row
        self._num_rows += 1
        if self._num_rows <= _NUM_COMPARED:
            self._compared.add(value if isinstance(value, str) else repr(value))
        if is_number(value):
            self._add_number(value, row)
            return
        self.is_numeric = self._counts_rows = False
        self._first_text = self._first_text or (value, row)
        text = str(value).strip()
        if text in MISSING:
            self._num_missing += 1
            self._first_missing = self._first_missing or (text, row)
        self._num_dates += bool(DATE.fullmatch(text))
        self._num_quantities += bool(_QUANTITY.fullmatch(text))
        self._num_with_units += has_number_notation(text)

    def _add_number(self, value: object, row: int) -> None:
        self._num_numbers += 1
        try:
            number = float(value)  # type: ignore[arg-type]  # `is_number` has checked it
        except OverflowError:
            number = inf
        self._highest = max(self._highest, number)
        if number >= 1e9:
            self._num_times.update(unit for unit, (low, high) in UNIX_TIMES.items() if low <= number < high)
        if isinstance(value, str):
            self._num_small += value.isdigit() and number < 1000
            if _THOUSANDS.fullmatch(value):
                self._num_grouped += 1
                self._first_grouped = self._first_grouped or (value, row)
        if number in _SENTINELS:
            self._sentinels[number] += 1
            self._first_sentinel.setdefault(number, row)
        else:
            self._lowest = min(self._lowest, number)
        self._num_compact_dates += 19e6 < number < 21e6 and bool(COMPACT_DATE.fullmatch(f"{number:.0f}"))
        self._num_cut += isinstance(value, str) and bool(_SPREADSHEET_NUMBER.fullmatch(value))
        if self._counts_rows:
            self._counts_rows = self._previous is None or number == self._previous + 1
            self._previous = number
        if isinstance(value, str) and value[0] == "0" and len(value) > 1 and value.isdigit():
            self._num_coded += 1
            self._first_code = self._first_code or (value, row)

    def warnings(self) -> list[ColumnWarning]:
        """Return at most one warning: the most specific one."""
        described = self._describe_text() if self._first_text else self._describe_number()
        return [] if described is None else [described]

    def _describe_text(self) -> ColumnWarning | None:
        assert self._first_text is not None
        value, row = self._first_text
        first = f"{short_repr(value)} in {{place}}"
        if self._num_numbers > self._num_rows / 2:
            problem = f"is read as text: {counted(self._num_numbers, 'cell', 'is', of=self._num_rows)} numbers, "
            return ColumnWarning(f"{problem}the first other cell is {first}. Correct such cells, or empty them", row)
        if self._num_rows < _MIN_ROWS:
            return None
        if self._num_dates >= _MOST * self._num_rows:
            problem = f"contains dates, such as {first}, and each date is a category of its own"
            return ColumnWarning(f"{problem}. Replace it by numbers, such as the year or a number of days", row)
        quantities = self._num_quantities if len(self._compared) > _MANY_VALUES else 0
        if self._num_numbers + max(self._num_with_units, quantities) >= _MOST * self._num_rows:
            problem = f"is read as text, but its cells look like numbers, the first is {first}"
            return ColumnWarning(f"{problem}. Write plain numbers with a decimal point, such as 1234.5", row)
        if self._is_distinct:
            problem = f"has a different text in each row, such as {first}, so nothing can be learned from it"
            return ColumnWarning(problem, row)
        if self._first_missing and not is_code("NA", map(str, self._compared)):
            text, row = self._first_missing
            cells = counted(self._num_missing, "cell")
            problem = f"has {cells} such as {text!r} in {{place}}, read as a category instead of as missing"
            return ColumnWarning(f"{problem}. Empty these cells, or rename the category if it is a real one", row)
        return None

    def _describe_number(self) -> ColumnWarning | None:
        if self._num_rows < _MIN_ROWS:
            return None
        if self._counts_rows:
            return ColumnWarning("only counts the rows, beginning at {place}", self._first_row)
        if self._is_distinct and IDENTIFIER.search(self.name):
            return ColumnWarning("has the name of an identifier and a different number in each row", self._first_row)
        if self._num_compact_dates == self._num_rows:
            problem = "contains dates written as numbers, the first is {place}. Replace them by a number of days"
            return ColumnWarning(problem, self._first_row)
        unit = next((unit for unit, count in self._num_times.items() if count == self._num_rows), None)
        if unit is not None:
            problem = f"contains Unix times in {unit}, the first is {{place}}. Replace them by a number of days"
            return ColumnWarning(problem, self._first_row)
        if (doubt := self.thousands_warning()) is not None:
            return doubt
        if self._num_cut == self._num_rows:
            problem = "contains numbers that a spreadsheet has cut, the first is {place}. Export the column as text"
            return ColumnWarning(problem, self._first_row)
        for sentinel, count in self._sentinels.items():
            if count > 1 and self._lowest >= 0:
                problem = f"has no negative numbers except {sentinel:g} in {count} rows, the first is {{place}}"
                row = self._first_sentinel[sentinel]
                return ColumnWarning(f"{problem}. Empty these cells if they are missing values", row)
        if self._first_code and self._num_coded >= self._num_numbers / 2:
            value, row = self._first_code
            problem = f"contains numbers with leading zeros, such as {short_repr(value)} in {{place}}"
            return ColumnWarning(f"{problem}: codes, which are read as amounts", row)
        return None

    def thousands_warning(self) -> ColumnWarning | None:
        """Return a warning if all cells may have a point before their thousands, such as `1.007` among `950`.

        Numbers with three decimals look the same; they are not reported if all are of one size.
        """
        is_wide = self._num_small > 0 or self._highest >= _WIDE * self._lowest
        grouped = self._first_grouped if self._num_rows >= _MIN_ROWS else None
        if grouped is None or not is_wide or self._num_grouped + self._num_small < self._num_rows:
            return None
        value, row = grouped
        problem = f"contains numbers such as {value!r} in {{place}}, and reads them as decimals"
        whole, rest = value.split(".")
        remedy = f"If the point separates thousands, write {whole}{rest}, otherwise a fourth decimal: {value}0"
        return ColumnWarning(f"{problem}. {remedy}", row)

    @property
    def _is_distinct(self) -> bool:
        return len(self._compared) == min(self._num_rows, _NUM_COMPARED)


@dataclass
class Leaks:
    """Features of the training data that have a value of their own for each target, seen row by row.

    Attributes:
        num_rows: Rows so far.
        first_row: The first of them.
    """

    num_rows: int = 0
    first_row: int = 0
    _pairs: dict[str, tuple[dict[object, object], dict[object, object]]] | None = None

    def add(self, features: Mapping[str, object], target: object, row: int) -> None:
        """Add a row; features that are not one to one with the target are forgotten."""
        self.num_rows += 1
        self.first_row = self.first_row or row
        if self._pairs is None:
            self._pairs = {name: ({}, {}) for name in features}
        for name, (targets, values) in list(self._pairs.items()):
            value = features[name]
            if len(targets) == _NUM_COMPARED and value not in targets:
                continue
            if targets.setdefault(value, target) != target or values.setdefault(target, value) != value:
                del self._pairs[name]

    def names(self) -> list[str]:
        """Return the features that equal the target, or that are one to one with it and have repeated values."""
        pairs = {name: targets for name, (targets, _) in (self._pairs or {}).items() if len(targets) > 1}
        if self.num_rows < _MIN_ROWS:
            return []
        few = {name for name, targets in pairs.items() if len(targets) <= self.num_rows / 2}
        return [name for name, targets in pairs.items() if name in few or all(a == b for a, b in targets.items())]


def is_code(name: str, names: Iterable[str]) -> bool:
    """Return whether a name is `NA` among names that are mostly two capital letters, such as codes of countries."""
    others = [other for other in names if other != name]
    codes = [other for other in others if len(other) == 2 and other.isalpha() and other.isupper()]
    return name == "NA" and 2 * len(codes) > len(others)
