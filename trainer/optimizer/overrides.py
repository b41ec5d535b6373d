"""What a job says of single parameters: their own learning rate and weight decay, by a pattern on their names."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any, Final

from trainer.errors import did_you_mean, format_error
from trainer.ranges import not_negative, positive

_RANGES: Final[Mapping[str, Callable[[str, float], str | None]]] = {"lr": positive, "weight_decay": not_negative}
_FORM: Final = "An entry is {match: <pattern of names>, lr: ..., weight_decay: ...}, one of the values at least"
_MODEL: Final = "model."
_SHOWN: Final = 3


def overridden(name: str, overrides: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The `lr` and `weight_decay` that `overrides` give the parameter `name`; key by key the last match holds."""
    found: dict[str, float] = {}
    for entry in overrides:
        if fnmatchcase(_shown(name), entry["match"]):
            found.update({key: float(entry[key]) for key in _RANGES if key in entry})
    return found


def override_faults(overrides: Sequence[Any], trainable: Mapping[str, bool]) -> list[str]:
    """What is wrong with the entries: those of `form_faults`, and patterns that fit no parameter that is trained.

    Args:
        overrides: As the user wrote them.
        trainable: Every parameter's name, and whether it is not frozen.
    """
    shown = {_shown(name): free for name, free in trainable.items()}
    faults = []
    for where, entry in _numbered(overrides):
        faults += _entry_faults(where, entry)
        if isinstance(entry, Mapping) and _is_pattern(entry.get("match")):
            faults += filter(None, [_match_fault(f"{where}, match", entry["match"], shown)])
    return faults


def form_faults(overrides: Sequence[Any]) -> list[str]:
    """What is wrong with the entries whatever the model, one message each."""
    return [fault for where, entry in _numbered(overrides) for fault in _entry_faults(where, entry)]


def _numbered(overrides: Sequence[Any]) -> list[tuple[str, Any]]:
    return [(f"overrides: entry {number}", entry) for number, entry in enumerate(overrides, start=1)]


def _is_pattern(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _entry_faults(where: str, entry: Any) -> list[str]:
    if not isinstance(entry, Mapping):
        return [format_error(where, "must be a mapping", _FORM, value=entry)]
    known = ["match", *_RANGES]
    faults = [
        format_error(where, "has an unknown key", did_you_mean(str(key), known), value=key)
        for key in entry
        if key not in known
    ]
    if not faults and not any(key in entry for key in _RANGES):
        faults.append(format_error(where, "sets nothing", _FORM))
    for key, in_range in _RANGES.items():
        if key in entry and (fault := _value_fault(f"{where}, {key}", entry[key], in_range)):
            faults.append(fault)
    if not _is_pattern(pattern := entry.get("match")):
        remedy = "blocks.0.* or *.bias, for example"
        faults.append(format_error(f"{where}, match", "must be a pattern of parameter names", remedy, value=pattern))
    return faults


def _value_fault(where: str, value: Any, in_range: Callable[[str, float], str | None]) -> str | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return format_error(where, "must be a number", value=value)
    return in_range(where, value)


def _match_fault(where: str, pattern: str, trainable: Mapping[str, bool]) -> str | None:
    matched = [name for name in trainable if fnmatchcase(name, pattern)]
    if not matched:
        return format_error(where, "fits no parameter", _nearest_names(pattern, list(trainable)), value=pattern)
    if not any(trainable[name] for name in matched):
        return format_error(where, "fits frozen parameters only", value=pattern)
    return None


def _nearest_names(pattern: str, names: list[str]) -> str:
    found = get_close_matches(pattern.strip("*"), names, n=_SHOWN, cutoff=0.5)
    if found:
        return f"Near it: {', '.join(found)}"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"There are {', '.join(names[:_SHOWN])}{more}"


def _shown(name: str) -> str:
    return name.removeprefix(_MODEL)
