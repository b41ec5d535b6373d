"""Rows of any table to samples: which of its columns plays which role, and what their cells hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.cells import NOUNS, REMEDIES, converter, is_number, key_of, number, shown
from trainer.data.rows import as_text, place
from trainer.data.splits import Sample
from trainer.errors import DataError, did_you_mean, format_error, raise_if_any

_LOG = logging.getLogger(__name__)

Columns = Mapping[str, str | Sequence[str] | None]
Record = tuple[int, str, Sequence[Any]]
"""What the column `row` holds, the place for a message (`my.csv, row 18`), and a value for each column."""


def check_columns(columns: Columns, roles: Sequence[str]) -> None:
    """Whether `columns` names columns for exactly `roles`, as far as that can be known without the data.

    Raises:
        ConfigError: It does not.
    """
    faults = []
    for role in columns:
        if role not in roles:
            known = did_you_mean(role, list(roles))
            faults.append(format_error(f"columns.{role}", "is no role of a column", known, value=columns[role]))
    faults += [
        format_error("columns", f"must hold {role}", value=dict(columns)) for role in roles if role not in columns
    ]
    for role, name in columns.items():
        if role not in ("value", "features") and not isinstance(name, str | None):
            faults.append(format_error(f"columns.{role}", "must be one column", value=name))
        elif name is not None and (not name or (not isinstance(name, str) and len(set(name)) < len(name))):
            faults.append(format_error(f"columns.{role}", "must be a column or a list of different ones", value=name))
    raise_if_any(*faults)


@dataclass(frozen=True)
class Table:
    """The columns that play the roles asked for.

    Attributes:
        names: The columns of each role, in the order of the roles.
        keys: How a message names the role: `data.label=category`.
        separator: Between the parts of a list in one cell.
        numeric: The features by name, and whether each is a number; known after `learn`.
    """

    names: Mapping[str, Sequence[str]]
    keys: Mapping[str, str]
    separator: str
    numeric: dict[str, bool] = field(default_factory=dict)

    @classmethod
    def of(
        cls, columns: Columns, roles: Sequence[str], column: Callable[[str], str], separator: str, known: Sequence[str]
    ) -> Table:
        """The roles asked for that a column is named for.

        Args:
            columns: The column or columns of each role; None for all others of the table in `features`.
            roles: Those asked for.
            column: How a message names a role.
            separator: Between the parts of a list in one cell.
            known: The columns of the table.

        Raises:
            DataError: One column plays two roles, or there is none for the features.
        """
        names: dict[str, list[str]] = {}
        for role in roles:
            if role in columns and (given := columns[role]) is not None:
                names[role] = [given] if isinstance(given, str) else list(given)
        used: dict[str, str] = {}
        for role, wanted in names.items():
            for name in wanted:
                if (other := used.setdefault(name, role)) != role:
                    raise DataError(format_error(column(role), f"is the column of {column(other)} too", "Name another"))
        if "features" in roles and "features" not in names:
            names["features"] = [name for name in known if name not in used]
            if not names["features"]:
                raise DataError(
                    format_error(column("features"), "no column is left for the features", value=list(known))
                )
        ordered = {role: names[role] for role in roles if role in names}
        return cls(ordered, {role: column(role) for role in ordered}, separator)

    @property
    def columns(self) -> list[str]:
        """All columns wanted, in the order in which a record has their values."""
        return [name for names in self.names.values() for name in names]

    @property
    def named_by(self) -> str:
        """`data.text and data.label`: the keys that name the columns."""
        keys = [key.partition("=")[0] for key in self.keys.values()]
        return ", ".join([*keys[:-2], " and ".join(keys[-2:])])

    def learn(self, records: Callable[[], Iterator[Record]]) -> None:
        """Finds out which features are numbers: those with nothing else in any training cell that is not empty.

        Args:
            records: Gives the records that training takes or lends; not called without features.
        """
        names = self.names.get("features")
        if names is None:
            return
        positions = [(name, self.columns.index(name)) for name in names]
        filled, numbers = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        others: dict[str, str] = {}
        for _, spot, values in records():
            for name, position in positions:
                value = values[position]
                if value is None or value != value or (isinstance(value, str) and not value.strip()):
                    continue
                filled[name] += 1
                if is_number(value):
                    numbers[name] += 1
                elif name not in others:
                    others[name] = f"{shown(value)} in {spot}"
        self.numeric.update({name: name not in others for name in names})
        for name, other in others.items():
            if numbers[name] > filled[name] / 2:
                told = "%s: the column %r is taken for texts: %d of %d cells are numbers, the first other one is %s"
                _LOG.warning(told, self.keys["features"], name, numbers[name], filled[name], other)

    def samples(self, records: Iterator[Record], folders: Sequence[Path] = ()) -> Iterator[Sample]:
        """Records to samples; one that lacks what a role needs is a sample without values.

        Args:
            records: Those of one origin.
            folders: For each file of the records what its paths of images are relative to.

        Raises:
            DataError: A cell cannot be used.
        """
        parts: list[tuple[str, int | slice, Callable[[Any], Any]]] = []
        start = 0
        for role, names in self.names.items():
            several = role in ("value", "features")
            convert = self._features if role == "features" else converter(role, self.separator)
            parts.append((role, slice(start, start + len(names)) if several else start, convert))
            start += len(names)
        width = 0
        for row, spot, cells in records:
            values: dict[str, Any] = {}
            try:
                for role, position, convert in parts:
                    values[role] = convert(cells[position])
            except ValueError as error:
                raise self._refused(spot, role, cells[position], error) from None
            if None in values.values():
                yield Sample(row, None)
                continue
            if "value" in values:
                width = width or len(values["value"])
            key = self._checked(spot, values, width, folders[place(row)[0]] if folders else None)
            yield Sample(row, values, key)

    def _checked(self, spot: str, values: dict[str, Any], width: int, folder: Path | None) -> str | None:
        """What holds between values; makes the path of an image absolute and gives the key of its content."""
        if "tags" in values and "words" in values and len(values["tags"]) != len(values["words"]):
            problem = f"expected a tag for each of {len(values['words'])} words"
            raise DataError(format_error(f"{spot}, {self.keys['tags']}", problem, value=len(values["tags"])))
        if "value" in values and len(values["value"]) != width:
            problem = f"expected {width} values as in the first row"
            raise DataError(format_error(f"{spot}, {self.keys['value']}", problem, value=len(values["value"])))
        if "image" not in values:
            return None
        image = values["image"]
        if image["bytes"] is None and folder is not None:
            image["path"] = str((folder / Path(image["path"]).expanduser()).absolute())
        try:
            return key_of(values)
        except OSError as error:
            problem = f"the image cannot be read: {error.strerror}"
            spot = f"{spot}, column {self.names['image'][0]!r}"
            raise DataError(format_error(spot, problem, REMEDIES["image"], value=image["path"])) from error

    def _features(self, cells: Sequence[Any]) -> dict[str, float | str | None]:
        return {name: self._feature(name, cell) for name, cell in zip(self.names["features"], cells, strict=True)}

    def _feature(self, name: str, cell: Any) -> float | str | None:
        if not self.numeric[name]:
            text = as_text(cell)
            return text if text and not text.isspace() else None
        try:
            return number(cell)
        except ValueError as error:
            if is_number(cell):
                raise
            raise ValueError(f"{error}, where every row of training has one") from None

    def _refused(self, spot: str, role: str, cells: Any, error: ValueError) -> DataError:
        """The error for the cell of a role, or for the first of its cells, that cannot be used."""
        column, problem = self.names[role][0], str(error)
        if role in ("value", "features"):
            one = converter("value", self.separator)
            for column, cell in zip(self.names[role], cells, strict=True):
                try:
                    self._feature(column, cell) if role == "features" else one([cell])
                except ValueError as fault:
                    problem = str(fault)
                    break
        return DataError(format_error(f"{spot}, column {column!r}", problem, REMEDIES[role]))


def all_of(table: Table) -> str:
    """`no row has both data.text=text and data.label=label`: what is wrong where nothing is left."""
    keys = [key for role, key in table.keys.items() if role not in ("features", "labels")]
    assert set(table.keys) <= NOUNS.keys()
    if len(keys) == 1:
        return f"no row has {keys[0]}"
    return f"no row has {'both ' if len(keys) == 2 else 'all of '}{', '.join(keys[:-1])} and {keys[-1]}"
