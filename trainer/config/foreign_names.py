"""The names that other trainers give to the keys of this one; the table is in `foreign_names.yaml`."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from pathlib import Path
from re import fullmatch
from typing import Any

import yaml

_PATTERNS = {
    "<number>": r"\d+(\.\d+)?(e-?\d+)?",
    "<count>": r"[1-9]\d*",
    "<column>": r"(?!(true|false|null|none)$)[A-Za-z_]\w*",
    "<amount>": r"(?=.*[1-9])\d+(\.\d+)?",
    "<time>": r"\d+(\.\d+)?[smhd]",
}
_ANY = r"(?!(true|false|null|none)$)[^\s,\[\]{}]+"


@dataclass(frozen=True)
class ForeignName:
    """Names of a key in other trainers, and what does the same here: a row of the table, which describes the columns.

    Attributes:
        names: The names, separated by spaces.
        override: The overrides here, separated by spaces; `<value>` is the value. Empty if nothing does the same.
        values: The overrides for single values; if there are some without `pattern`, no other value is known.
        note: A sentence about the difference, or about what to do if nothing does the same.
    """

    names: str
    override: str = ""
    sample: str = ""
    pattern: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    is_share: bool = False

    def translate(self, value: str | None) -> str | None:
        """Return the overrides that do the same as this name with a value; None if they depend on more."""
        if value is None or value in self.values:
            return None if value is None else self.values[value]
        if self.values or not self.override or not fullmatch(self.pattern, value):
            return None
        return self._overrides(f"{(Decimal(value) * 100).normalize():f}%" if self.is_share else value)

    def _overrides(self, value: str) -> str:
        return self.override.replace("<value>", value)

    def remedy(self, value: str | None) -> str:
        """Return what to do instead of setting this name to a value."""
        overrides = self.translate(value)
        if overrides == "":
            remedy = "Leave it out: this is the default"
        elif overrides is not None:
            remedy = f"Set {overrides}"
        elif self.override:
            key = self.override.split()[-1].partition("=")[0]
            remedy = f"Set {key}, such as {self._overrides(self.sample)}"
        else:
            return self.note
        return ". ".join(filter(None, [remedy, self.note]))

    def fits(self, known: Collection[str]) -> bool:
        """Return whether all its overrides set keys and groups in `known`, or keys of an option that they choose."""
        overrides = [self.override, *self.values.values()]
        keys = [text.partition("=")[0] for each in overrides for text in each.split()]
        chosen = {key for key in keys if "." not in key}
        return all(key in known or ("." in key and key.partition(".")[0] in chosen & {*known}) for key in keys)


@cache
def _table() -> Mapping[str, Any]:
    """Return the table; every value in it is a text."""
    loader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
    table: Mapping[str, Any] = yaml.load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), Loader=loader)
    return table


def _one_by_one(rows: Mapping[str, str]) -> dict[str, str]:
    """Return the entry of each of the names that share a line of the table."""
    return {name: entry for names, entry in rows.items() for name in names.split()}


@cache
def foreign_values() -> Mapping[str, Mapping[str, str]]:
    """Return the values that other trainers give to keys and groups of the same name, and the value here."""
    return {key: _one_by_one(rows) for key, rows in _table()["values"].items()}


@cache
def foreign_verbs() -> Mapping[str, str]:
    """Return the verbs of other trainers, and the verb here."""
    return _one_by_one(_table()["verbs"])


@cache
def foreign_names() -> tuple[ForeignName, ...]:
    """Return the rows of the table."""
    return tuple(_read_row(names, row) for names, row in _table()["keys"].items())


def _read_row(names: str, row: str | Mapping[str, Any]) -> ForeignName:
    if isinstance(row, str):
        return ForeignName(names, note=row)
    note = row.get("note", "")
    if "on" in row:
        return ForeignName(names, row["on"], "true", _ANY, {"true": row["on"], "false": row.get("off", "")}, note)
    pattern = row.get("pattern", _ANY)
    for name, meaning in _PATTERNS.items():
        pattern = pattern.replace(name, meaning)
    return ForeignName(names, row["set"], row["sample"], pattern, dict(_values(row)), note, "is_share" in row)


def _values(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the overrides for each single value of a row."""
    values = _one_by_one(row.get("values", {}))
    if "choices" in row:
        choices = {name: name for name in row["choices"].split()}
        choices |= foreign_values().get(row["set"].partition("=")[0], {})
        values |= {name: row["set"].replace("<value>", here) for name, here in choices.items()}
    for prefix in ("", *row.get("prefixes", "").split()):
        yield from ((f"{prefix}{value}", overrides) for value, overrides in values.items())


@cache
def _by_name() -> dict[str, ForeignName]:
    return {name: each for each in foreign_names() for name in each.names.split()}


def foreign_name(path: str) -> ForeignName | None:
    """Return what is known of a key, or of its last name, as a name of other trainers."""
    return _by_name().get(path) or _by_name().get(path.rpartition(".")[2].replace("-", "_"))


def foreign_value(key: str, value: object) -> str | None:
    """Return the value of a key here for a value of other trainers; None if it is not known."""
    return foreign_values().get(key, {}).get(str(value))
