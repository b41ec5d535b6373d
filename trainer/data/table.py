"""Tables: which column has which role, which features are numbers, and records as samples."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from annotated_types import MinLen

from trainer.constraints import NonEmptyStr, Rule
from trainer.data.cells import (
    GROUP,
    REMEDIES,
    ROLE_NOUNS,
    SPLIT_ROLES,
    TIME,
    CellParser,
    TimeParser,
    as_text,
    cell_parser,
    classes_in,
    has_repeated_label,
    is_number,
    join_columns,
    parse_boolean,
    parse_number,
    split_key,
)
from trainer.data.labels import LabelColumn
from trainer.data.plausibility import ColumnWarning, FeatureColumn, Leaks
from trainer.data.splits import Sample, split_row_id
from trainer.display import counted
from trainer.errors import DataError, RowErrors, did_you_mean, format_error, raise_if_any
from trainer.layout import expand_home

ColumnNames = Mapping[str, str | Sequence[str] | None]
"""The column of each role; `text`, `value` and `features` may have several. None for a role without a column."""

Record = tuple[int, str, Sequence[object]]
"""The column `row`, the place for a message (`my.csv, row 18`), and a value for each column."""

RoleColumns: TypeAlias = Mapping[str, NonEmptyStr | Annotated[list[NonEmptyStr], MinLen(1)] | None]
"""`ColumnNames` as the argument of a source."""

COLUMN_RULES = (
    Rule(
        "not any(isinstance(columns[role], list) and role not in ['text', 'value', 'features'] for role in columns)",
        "columns.*",
        "must be one column, except for text, value and features, which may be lists of columns",
    ),
    Rule(
        "not isinstance(columns['text'], list) or len(set(columns['text'])) == len(columns['text'])",
        "columns.text",
        "must not name a column twice",
    ),
    Rule(
        "not isinstance(columns['value'], list) or len(set(columns['value'])) == len(columns['value'])",
        "columns.value",
        "must not name a column twice",
    ),
    Rule(
        "not isinstance(columns['features'], list) or len(set(columns['features'])) == len(columns['features'])",
        "columns.features",
        "must not name a column twice",
    ),
)
"""Rules of a source with the argument `columns`."""

_GARBLED = (
    "\u00e2\u20ac",
    "\u00c3\u00a9",
    "\u00c3\u00bc",
    "\u00c3\u00b6",
    "\u00c3\u00a4",
    "\u00c3\u00a8",
    "\u00c3\u00b1",
    "\u00ef\u00bf\u00bd",
)
"""UTF-8 of quotes, dashes and frequent letters after it was read as Windows-1252."""

_LATER_ROLES = ("spans",)
"""Roles that the first runs did not have: the fingerprints of their data must not change."""

_MAX_LISTED = 20


def in_role_order(columns: ColumnNames, roles: Sequence[str]) -> ColumnNames:
    """Return `columns` in the order of `roles`, so that the order of keys in a file does not change a fingerprint.

    A role that the config of an earlier run does not have has no column.

    Raises:
        ConfigError: It has other keys than `roles`.
    """
    unknown = [
        format_error(f"columns.{role}", "unknown role", did_you_mean(role, list(roles)), value=columns[role])
        for role in columns
        if role not in roles
    ]
    missing = [role for role in roles if role not in columns and role not in _LATER_ROLES]
    raise_if_any(
        *unknown, *(format_error(f"columns.{role}", "is missing", f"Set data.columns.{role}=null") for role in missing)
    )
    return {role: columns.get(role) for role in roles}


def fingerprint_columns(columns: ColumnNames) -> ColumnNames:
    """Return the columns that enter a fingerprint: a role that earlier runs lack only at a name of its own."""
    return {role: name for role, name in columns.items() if not (role in _LATER_ROLES and name in (role, None))}


def split_columns(split: Mapping[str, object]) -> dict[str, str]:
    """Return the columns of the roles `group` and `time` that the argument `split` of a source names."""
    return {role: name for role in SPLIT_ROLES if isinstance(name := split.get(role), str)}


def describe_columns(key: str, name: str | Sequence[str] | None) -> str:
    """Return `data.label=category`, `data.columns.value=[a,b]` or `data.columns.labels=null`."""
    value = "null" if name is None else name if isinstance(name, str) else f"[{','.join(name)}]"
    return f"data.{key}={value}"


@dataclass(frozen=True)
class Table:
    """The columns of the requested roles.

    Attributes:
        names: The columns of each role, in the order of the roles.
        keys: The name of each role in a message: `data.label=category`.
        separator: The separator between the parts of a list in one cell.
        numeric: For each feature by name, True for numbers and False for texts; filled by `scan`.
        warnings: Warnings about the training data; filled by `scan`.
        time: Reads the cells of the role `time`.
        remedies: The remedy for a cell that cannot be used, by role.
    """

    names: Mapping[str, Sequence[str]]
    keys: Mapping[str, str]
    separator: str
    numeric: dict[str, bool] = field(default_factory=dict)
    warnings: list[ColumnWarning] = field(default_factory=list)
    time: TimeParser = field(default_factory=TimeParser)
    remedies: Mapping[str, str] = field(default_factory=lambda: REMEDIES)

    @classmethod
    def for_roles(
        cls,
        columns: ColumnNames,
        roles: Sequence[str],
        describe_role: Callable[[str], str],
        separator: str,
        available: Sequence[str],
    ) -> Table:
        """Return the table of the requested roles that have a column.

        Args:
            columns: The column or columns of each role; `features` None means all other columns of the table.
            roles: The requested roles.
            describe_role: Returns the name of a role in a message.
            separator: The separator between the parts of a list in one cell.
            available: All columns of the table.

        Raises:
            DataError: One column has two roles, or none is left for the features.
        """
        names: dict[str, list[str]] = {}
        for role in roles:
            if role in columns and (chosen := columns[role]) is not None:
                names[role] = [chosen] if isinstance(chosen, str) else list(chosen)
        used: dict[str, str] = {}
        deciding = [name for role in SPLIT_ROLES for name in names.get(role, ())]
        for role, role_columns in names.items():
            for name in role_columns if role not in SPLIT_ROLES else ():
                if (other := used.setdefault(name, role)) != role:
                    problem = f"is the column of {describe_role(other)} too"
                    raise DataError(format_error(describe_role(role), problem, "Name another column"))
        warnings = []
        if "features" in roles and "features" not in names:
            names["features"] = [name for name in available if name not in (*used, *deciding)]
            if names["features"].count("") > 1:  # a spreadsheet writes its empty columns too
                names["features"] = [name for name in names["features"] if name]
                warnings.append(ColumnWarning(f"{describe_role('features')}: columns without a name are left out.", 1))
            if not names["features"]:
                problem = "no column is left for the features"
                raise DataError(format_error(describe_role("features"), problem, value=list(available)))
        ordered = {role: names[role] for role in roles if role in names}
        return cls(ordered, {role: describe_role(role) for role in ordered}, separator, warnings=warnings)

    @property
    def columns(self) -> list[str]:
        """All columns, in the order of the values in a record."""
        return [name for names in self.names.values() for name in names]

    @property
    def column_remedy(self) -> str:
        """The remedy for missing columns, for a message: `set data.text and data.label`."""
        keys = [key.partition("=")[0] for key in self.keys.values()]
        return f"set {', '.join([*keys[:-2], ' and '.join(keys[-2:])])}"

    def scan(self, records: Callable[[], Iterator[Record]]) -> None:
        """Fill `numeric` and `warnings`: a feature is numeric if every training cell that is not empty is a number.

        Args:
            records: Returns the records of the training data, before any are held out; called only with features or
                labels.
        """
        if "features" in self.names:
            self._scan_features(records, self.names["features"])
        if "labels" in self.names:
            (name,) = self.names["labels"]
            position = self.columns.index(name)
            cells = ((row, values[position]) for row, _, values in records())
            repeated = [row for row, cell in cells if has_repeated_label(cell, self.separator)]
            if repeated:
                rows = counted(len(repeated), "row", "contains")
                text = f"{self.keys['labels']}: {rows} a label twice, the first is {{place}}"
                self.warnings.append(ColumnWarning(f"{text}. Write each label of a row once.", repeated[0]))

    def find_time_kind(self, records: Iterator[Record]) -> None:
        """Read the first time of some records, which decides how all of them are stored; other problems show later."""
        if TIME in self.names and (first := next(records, None)) is not None:
            with suppress(ValueError):
                self.time(first[2][self.columns.index(self.names[TIME][0])])

    def _scan_features(self, records: Callable[[], Iterator[Record]], names: Sequence[str]) -> None:
        positions = {name: position for position, name in enumerate(self.columns)}
        scanned = [(positions[name], FeatureColumn(name)) for name in names]
        for row, _, values in records():
            for position, column in scanned:
                value = values[position]
                if value is None or value != value or (isinstance(value, str) and not value.strip()):
                    continue
                column.add(value, row)
        for _, column in scanned:
            self.numeric[column.name] = column.is_numeric
            for message, row in column.warnings():
                text = f"{self.keys['features']}: column {column.name!r} {message}. {self._without(column.name)}"
                self.warnings.append(ColumnWarning(text, row))

    def _without(self, name: str) -> str:
        """Return the remedy of a column that is no feature."""
        others = [other for other in self.names["features"] if other != name]
        if not 0 < len(others) <= _MAX_LISTED:
            return "To leave it out, list the other columns in data.columns.features."
        listed = ",".join(other if other.isidentifier() else json.dumps(other) for other in others)
        return f"To leave it out, set 'data.columns.features=[{listed}]'."

    def training_samples(self, records: Iterator[Record], folders: Sequence[Path] = ()) -> Iterator[Sample]:
        """Yield the samples of the training data, and add the warnings about their targets and texts at the end."""
        roles = [role for role in ("label", "labels") if role in self.names]
        inputs = [role for role in self.names if role not in (*roles, *SPLIT_ROLES)]
        columns = {role: LabelColumn(role, self.names[role][0], inputs, self.columns) for role in roles}
        target = next((role for role in ("label", "value") if role in self.names), None)
        leaks, garbled = Leaks(), []
        values = [FeatureColumn(name) for name in self.names.get("value", ())]
        for sample in self.samples(self._watch_values(records, values), folders):
            if sample.values is not None:
                if target is not None and "features" in sample.values:
                    value = sample.values[target]
                    leaks.add(sample.values["features"], value if target == "label" else value[0], sample.row)
                if "text" in sample.values and any(mark in sample.values["text"] for mark in _GARBLED):
                    garbled.append(sample.row)
                for role, column in columns.items():
                    for label in classes_in(sample.values[role]):
                        column.add(label, sample.row)
            yield sample
        for name in leaks.names():
            text = f"{self.keys['features']}: column {name!r} has a value of its own for each target"
            self.warnings.append(ColumnWarning(f"{text}, and so gives it away. {self._without(name)}", leaks.first_row))
        if garbled:
            texts = counted(len(garbled), "text", "contains")
            text = f"{self.keys['text']}: {texts} garbled characters, the first is {{place}}"
            remedy = "Their bytes are UTF-8 and were once read as another encoding: write the file again"
            self.warnings.append(ColumnWarning(f"{text}. {remedy}.", garbled[0]))
        for number_column in values:
            if (doubt := number_column.thousands_warning()) is not None:
                text = f"{self.keys['value']}: column {number_column.name!r} {doubt.message}."
                self.warnings.append(ColumnWarning(text, doubt.row))
        for role, column in columns.items():
            self.warnings.extend(ColumnWarning(f"{self.keys[role]}: {text}", row) for text, row in column.warnings())

    def _watch_values(self, records: Iterator[Record], values: Sequence[FeatureColumn]) -> Iterator[Record]:
        """Yield the records, and add the cells of the columns of values to `values`."""
        positions = [self.columns.index(column.name) for column in values]
        for record in records:
            for column, position in zip(values, positions, strict=True):
                if is_number(cell := record[2][position]):
                    column.add(cell, record[0])
            yield record

    def samples(self, records: Iterator[Record], folders: Sequence[Path] = ()) -> Iterator[Sample]:
        """Yield the records as samples; a record that lacks a required value becomes a sample without values.

        Args:
            records: The records of one origin.
            folders: For each file of the records, the base folder of relative image paths.

        Raises:
            DataError: Some rows cannot be used; after all records have been read, so that the error lists them.
        """
        parts: list[tuple[str, int | slice, CellParser]] = []
        start = 0
        for role, names in self.names.items():
            several = self._takes_list(role)
            own: dict[str, CellParser] = {"features": self._parse_features, TIME: self.time}
            if several:
                own["text"] = partial(join_columns, names=names)
            parse = own.get(role) or cell_parser(role, self.separator)
            parts.append((role, slice(start, start + len(names)) if several else start, parse))
            start += len(names)
        num_values = 0
        errors = RowErrors()
        advised: set[str] = set()
        for row, place, cells in records:
            values: dict[str, Any] = {}
            try:
                for role, position, parse in parts:
                    values[role] = parse(cells[position])
            except ValueError as error:
                for column, problem in self._cell_problems(role, cells[position], error):
                    remedy = "" if role in advised else self.remedies[role]
                    advised.add(role)
                    message = format_error(f"{place}, column {column!r}", problem, remedy)
                    # Nobody may have chosen these features, and then no cell of a column may be usable.
                    errors.add(message, f"{column} {problem}" if role == "features" else None)
                continue
            if None in values.values():
                yield Sample(row, None)
                continue
            if "value" in values:
                num_values = num_values or len(values["value"])
            folder = folders[split_row_id(row)[0]] if folders else None
            try:
                sample = Sample(row, values, self._check_sample(place, values, num_values, folder))
            except DataError as error:
                errors.add(error)
                continue
            yield sample._replace(key=values[GROUP]) if GROUP in values else sample
        errors.raise_if_any()

    def _takes_list(self, role: str) -> bool:
        """Return whether the parser of a role takes a list of cells."""
        return role in ("value", "features") or (role == "text" and len(self.names[role]) > 1)

    def _check_sample(self, place: str, values: dict[str, Any], num_values: int, folder: Path | None) -> str | None:
        """Check conditions between values; make an image path absolute and return the key of the image's content."""
        if "tags" in values and "words" in values and len(values["tags"]) != len(values["words"]):
            problem = f"expected a tag for each of {counted(len(values['words']), 'word')}"
            raise DataError(format_error(f"{place}, {self.keys['tags']}", problem, value=len(values["tags"])))
        if "value" in values and len(values["value"]) != num_values:
            problem = f"expected {counted(num_values, 'value')} as in the first row"
            raise DataError(format_error(f"{place}, {self.keys['value']}", problem, value=len(values["value"])))
        if "image" not in values:
            return None
        image = values["image"]
        if image["bytes"] is None and folder is not None:
            image["path"] = str((folder / Path(expand_home(image["path"]))).absolute())
        try:
            return split_key(values)
        except OSError as error:
            problem = f"the image cannot be read: {error.strerror}"
            place = f"{place}, column {self.names['image'][0]!r}"
            raise DataError(format_error(place, problem, self.remedies["image"], value=image["path"])) from error

    def _parse_features(self, cells: Sequence[object]) -> dict[str, float | str | None]:
        return {name: self._parse_feature(name, cell) for name, cell in zip(self.names["features"], cells, strict=True)}

    def _parse_feature(self, name: str, cell: object) -> float | str | None:
        if not self.numeric[name]:
            text = as_text(cell)
            return text if text and not text.isspace() else None
        try:
            # The training data may have had booleans in another format, where they are numbers.
            return parse_number(cell) if (truth := parse_boolean(cell)) is None else float(truth)
        except ValueError as error:
            if is_number(cell):
                raise
            raise ValueError(f"{error}; every training row has a number here") from None

    def _cell_problems(self, role: str, cells: Any, error: ValueError) -> Iterator[tuple[str, str]]:
        """Yield column and problem of each feature that cannot be used, or of the first such cell of another role."""
        if not self._takes_list(role):
            yield self.names[role][0], str(error)
            return
        parse = cell_parser(role, self.separator)
        for column, cell in zip(self.names[role], cells, strict=True):
            try:
                self._parse_feature(column, cell) if role == "features" else parse([cell] if role == "value" else cell)
            except ValueError as cell_error:
                yield column, str(cell_error)
                if role != "features":
                    return


def describe_no_rows(table: Table) -> str:
    """Return the problem if all rows are dropped: `no row has both data.text=text and data.label=label`."""
    keys = [key for role, key in table.keys.items() if role not in ("features", "labels", *SPLIT_ROLES)]
    assert set(table.keys) <= {*ROLE_NOUNS, *SPLIT_ROLES}
    if len(keys) == 1:
        return f"no row has {keys[0]}"
    return f"no row has {'both ' if len(keys) == 2 else 'all of '}{', '.join(keys[:-1])} and {keys[-1]}"
