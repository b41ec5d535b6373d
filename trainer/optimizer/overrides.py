"""Overrides of the learning rate and weight decay of single parameters, by a pattern on their names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final

from trainer.constraints import value_problems
from trainer.errors import did_you_mean, format_error

_ANNOTATIONS: Final = {"lr": "Positive", "weight_decay": "NonNegative"}
_FORM: Final = "Write {match: <pattern of names>, lr: ..., weight_decay: ...} with at least one of the values"
_MODEL: Final = "model."
_NUM_SUGGESTIONS: Final = 3


def find_override(name: str, overrides: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Return the `lr` and `weight_decay` that `overrides` set for a parameter; for each key, the last match wins."""
    values: dict[str, float] = {}
    for entry in overrides:
        if fnmatchcase(_displayed(name), entry["match"]):
            values.update({key: float(entry[key]) for key in _ANNOTATIONS if key in entry})
    return values


def find_override_problems(overrides: Sequence[Any], trainable: Mapping[str, bool]) -> list[str]:
    """Return a message for each problem: malformed entries, and patterns that match no trainable parameter.

    Args:
        overrides: The entries as the user wrote them.
        trainable: For each parameter's name, False if it is frozen.
    """
    displayed = {_displayed(name): free for name, free in trainable.items()}
    problems: list[str] = []
    for key, entry in _numbered(overrides):
        problems += _entry_problems(key, entry)
        if isinstance(entry, Mapping) and _is_pattern(entry.get("match")):
            problems += _match_problems(f"{key}, match", entry["match"], displayed)
    return problems


def form_faults(overrides: Sequence[Any]) -> list[str]:
    """Return a message for each malformed entry; this needs no model."""
    return [problem for key, entry in _numbered(overrides) for problem in _entry_problems(key, entry)]


def _numbered(overrides: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(f"overrides: entry {number}", entry) for number, entry in enumerate(overrides, start=1)]


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _entry_problems(key: str, entry: Any) -> Iterator[str]:
    if not isinstance(entry, Mapping):
        yield format_error(key, "must be a mapping", _FORM, value=entry)
        return
    known = ["match", *_ANNOTATIONS]
    unknown = [name for name in entry if name not in known]
    for name in unknown:
        yield format_error(key, "has an unknown key", did_you_mean(str(name), known), value=name)
    if not unknown and not any(name in entry for name in _ANNOTATIONS):
        yield format_error(key, "sets no value", _FORM)
    for name, annotation in _ANNOTATIONS.items():
        if name in entry:
            yield from value_problems(f"{key}, {name}", entry[name], annotation)
    if not _is_pattern(pattern := entry.get("match")):
        remedy = "Use blocks.0.* or *.bias, for example"
        yield format_error(f"{key}, match", "must be a pattern of parameter names", remedy, value=pattern)


def _match_problems(key: str, pattern: str, trainable: Mapping[str, bool]) -> Iterator[str]:
    matched = [name for name in trainable if fnmatchcase(name, pattern)]
    if not matched:
        yield format_error(key, "matches no parameter", _suggest_names(pattern, list(trainable)), value=pattern)
    elif not any(trainable[name] for name in matched):
        yield format_error(key, "matches only frozen parameters", value=pattern)


def _suggest_names(pattern: str, names: list[str]) -> str:
    similar = get_close_matches(pattern.strip("*"), names, n=_NUM_SUGGESTIONS, cutoff=0.5)
    if similar:
        return f"Similar names: {', '.join(similar)}"
    more = f" and {len(names) - _NUM_SUGGESTIONS} more" if len(names) > _NUM_SUGGESTIONS else ""
    return f"The names are {', '.join(names[:_NUM_SUGGESTIONS])}{more}"


def _displayed(name: str) -> str:
    """Return a parameter's name as users see it, without the leading `model.`."""
    return name.removeprefix(_MODEL)
