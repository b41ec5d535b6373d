"""Names of classes and categories: those that are probably one class, several classes, or no names at all."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from decimal import Decimal
from math import isnan
from unicodedata import category, normalize
from unicodedata import name as character_name

_MAX_SHOWN = 3
_SPLITS = frozenset({"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"})
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False}

_LOOK_ALIKES = str.maketrans(
    # 22 Cyrillic letters, then 15 Greek ones.
    "\u0410\u0412\u0415\u041a\u041c\u041d\u041e\u0420\u0421\u0422\u0425\u0406\u0408\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0458"
    "\u0391\u0392\u0395\u0396\u0397\u0399\u039a\u039c\u039d\u039f\u03a1\u03a4\u03a5\u03a7\u03bf",
    "ABEKMHOPCTXIJaeopcyxijABEZHIKMNOPTYXo",
)
"""Letters of other alphabets that look like Latin ones."""
_LATIN = frozenset(map(chr, _LOOK_ALIKES.values()))


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


def warn_of_equal_names(names: Collection[str], column: str) -> list[str]:
    """Return warnings about names that are probably one name, and about words with letters of two alphabets.

    Names are probably one if they differ only in white space, in case, in encoding, in the way a number is written, or
    in letters that look alike.
    """
    equal = _group(names, _meaning)
    alike = [spellings for spellings in _group(names, _look) if spellings not in equal]
    problem = f"{column}: names that differ only in white space, case, encoding or number format"
    shown = [" and ".join(map(_show, spellings)) for spellings in equal]
    warnings = _list_names(problem, shown, "Write each in one way.")
    problem = f"{column}: names that look alike, with letters of different alphabets"
    shown = [f"{spellings[0]!r} ({' and '.join(map(ascii, spellings))})" for spellings in alike]
    warnings += _list_names(problem, shown, "Write each in one alphabet.")
    listed = {name for spellings in (*equal, *alike) for name in spellings}
    mixed = [f"{name!r} ({name!a})" for name in names if name not in listed and _mixes_alphabets(name)]
    problem = f"{column}: names with a word in two alphabets, whose letters look alike"
    return warnings + _list_names(problem, mixed, "Write each word in one alphabet.")


def warn_of_splits(names: Collection[str], role: str) -> list[str]:
    """Return a warning if names are names of splits: a column that says to which split a row belongs."""
    if len(names) < 2 or not _SPLITS.issuperset(name.strip().casefold() for name in names):
        return []
    shown = ", ".join(map(repr, sorted(names)))
    return [f"{role}: the labels are the names of splits: {shown}. Name the column of the classes instead."]


def are_all_in_brackets(names: Sequence[str]) -> bool:
    """Return whether every name looks like a list that was written as a text."""
    return all(name.strip()[:1] == "[" and name.strip()[-1:] == "]" for name in names)


def _group(names: Iterable[str], key: Callable[[str], object]) -> list[list[str]]:
    """Return the names that have one key, for each key that several names have."""
    groups = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def _list_names(problem: str, shown: Sequence[str], remedy: str) -> list[str]:
    if not shown:
        return []
    more = f"; and {len(shown) - _MAX_SHOWN} more" if len(shown) > _MAX_SHOWN else ""
    return [f"{problem}: {'; '.join(shown[:_MAX_SHOWN])}{more}. {remedy}"]


def _show(name: str) -> str:
    """Return a name in quotes; with codes for characters that look like others."""
    return repr(name) if normalize("NFC", name) == name and _visible(name) == name else ascii(name)


def _visible(name: str) -> str:
    return "".join(character for character in name if category(character) != "Cf")


def _look(name: str) -> object:
    return _meaning(name if name.isascii() else normalize("NFKC", name).translate(_LOOK_ALIKES))


def _mixes_alphabets(name: str) -> bool:
    """Return whether a word has Latin letters and others that look like them, or Cyrillic ones and Latin lookalikes.

    `c\u0430t` with a Cyrillic letter is such a word; `TNF\u03b1` and `SMS\u043a\u0430` are not.
    """
    return not name.isascii() and any(map(_has_lookalike, re.findall(r"[^\W\d_]+", name)))


def _has_lookalike(word: str) -> bool:
    if word.isascii():
        return False
    letters = defaultdict(set)
    for letter in word:
        letters[character_name(letter, "").partition(" ")[0]].add(letter)
    latin, cyrillic, greek = letters["LATIN"], letters["CYRILLIC"], letters["GREEK"]
    if not latin:
        return False
    alike = (each for each in (cyrillic, greek) if each and all(ord(letter) in _LOOK_ALIKES for letter in each))
    return bool(letters["FULLWIDTH"] or any(alike) or (cyrillic and latin <= _LATIN))


def _meaning(name: str) -> object:
    # A letter with an accent is one character or two, and some characters have no width.
    text = name if name.isascii() else _visible(normalize("NFKC", name))
    text = " ".join(text.split()).casefold()
    if text in ("true", "false"):
        return Decimal(text == "true")
    try:
        number = float(text.replace("_", "?"))  # only Python reads 1_000 as a number
        # Exact, as two identifiers of 17 digits may be one floating-point number.
        return text if isnan(number) else Decimal(text)
    except (ValueError, ArithmeticError):
        return text
