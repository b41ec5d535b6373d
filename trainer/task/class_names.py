"""Names of classes and categories: those that are probably one class, several classes, or no names at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from math import isnan
from unicodedata import category, normalize

_MAX_SHOWN = 3
_LIST_SEPARATORS = ("|", ";", ",", "/")
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def boolean_spellings(known: Collection[str], names: Iterable[str]) -> dict[str, str]:
    """Return the known name of each boolean that is spelled otherwise: `1` for `True`, or the other way around.

    A format may decide the spelling: a Parquet file has booleans, which are read as 1 and 0, and a CSV file has texts.

    Args:
        known: Names that occur in training. Unless all are booleans, a name has no other spelling.
        names: Names that do not.
    """
    by_value = {_BOOLEANS.get(name.casefold()): name for name in known}
    if None in by_value or len(by_value) != len(known):
        return {}
    spelled = ((name, by_value.get(_BOOLEANS.get(name.casefold()))) for name in names)
    return {name: known_name for name, known_name in spelled if known_name is not None}


def warn_of_equal_names(names: Iterable[str], key: str) -> list[str]:
    """Return a warning if names differ only in white space, in case, in encoding, or in the way a number is written."""
    groups = defaultdict(list)
    for name in names:
        groups[_meaning(name)].append(name)
    equal = [spellings for spellings in groups.values() if len(spellings) > 1]
    if not equal:
        return []
    shown = "; ".join(" and ".join(map(_show, spellings)) for spellings in equal[:_MAX_SHOWN])
    more = f"; and {len(equal) - _MAX_SHOWN} more" if len(equal) > _MAX_SHOWN else ""
    problem = f"{key}: names that differ only in white space, case, encoding or number format: {shown}{more}"
    return [f"{problem}. Write each in one way."]


def warn_of_lists(names: Sequence[str], role: str) -> list[str]:
    """Return a warning if names contain several other names: `red|blue` next to `red` and `blue`."""
    for separator in _LIST_SEPARATORS:
        parts = {name: [part.strip() for part in name.split(separator)] for name in names if separator in name}
        known = {name for name in names if separator not in name} | _shared_parts(parts)
        lists = [name for name, each in parts.items() if len(each) > 1 and known.issuperset(each)]
        if len(lists) < 2 or len(lists) < len(parts) / 2:
            continue
        problem = f"{role}: {len(lists)} of {len(names)} labels are lists of other labels, such as {lists[0]!r}"
        if role == "label":
            remedy = "For several labels in a row, use task=multilabel_classification data.columns.labels=COLUMN"
        else:
            remedy = "Separate the labels of a row by"
        return [f"{problem}. {remedy} \"data.list_separator='{separator}'\"."]
    return []


def warn_of_splits(names: Collection[str], role: str) -> list[str]:
    """Return a warning if names are those of splits: a column that says to which split a row belongs."""
    if len(names) < 2 or not _SPLITS.issuperset(name.strip().casefold() for name in names):
        return []
    shown = ", ".join(map(repr, sorted(names)))
    return [f"{role}: the labels are the names of splits: {shown}. Name the column of the classes: data.label=COLUMN."]


def are_all_in_brackets(names: Sequence[str]) -> bool:
    """Return whether every name looks like a list that was written as a text."""
    return all(name.strip()[:1] == "[" and name.strip()[-1:] == "]" for name in names)


def _shared_parts(parts: Mapping[str, Sequence[str]]) -> set[str]:
    """Return the parts that occur in several names."""
    names_of = defaultdict(set)
    for name, each in parts.items():
        for part in each:
            names_of[part].add(name)
    return {part for part, names in names_of.items() if len(names) > 1}


def _show(name: str) -> str:
    """Return a name in quotes; with codes for characters that look like others."""
    return repr(name) if normalize("NFC", name) == name and _visible(name) == name else ascii(name)


def _visible(name: str) -> str:
    return "".join(character for character in name if category(character) != "Cf")


def _meaning(name: str) -> object:
    # A letter with an accent is one character or two, and some characters have no width.
    text = " ".join(_visible(normalize("NFKC", name)).split()).casefold()
    if text in ("true", "false"):
        return float(text == "true")
    try:
        number = float(text.replace("_", "?"))  # only Python reads 1_000 as a number
    except ValueError:
        return text
    return text if isnan(number) else number
