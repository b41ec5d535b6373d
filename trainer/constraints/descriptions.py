"""The values that an annotation allows, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import NoneType
from typing import Annotated, Final, Literal, Union, get_args

from trainer.constraints.annotations import (
    PathTo,
    fixed_items,
    is_duration,
    is_time,
    item_of,
    metadata_of,
    origin_of,
    walk,
)
from trainer.durations import FORMS, TIME_FORMS

_NOUNS: Final[dict[object, str]] = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "text",
    NoneType: "null",
}
_PLURALS: Final[dict[object, str]] = {int: "integers", float: "numbers", bool: "true or false", str: "texts"}


def describe(annotation: object) -> str:
    """Return the values of `annotation` in words that follow "must be"."""
    origin, arguments = origin_of(annotation), get_args(annotation)
    if origin is Union:
        return _described_union(arguments)
    if origin is Literal:
        values = [str(value) for value in arguments]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if origin is Annotated:
        path = next((item for item in metadata_of(annotation) if isinstance(item, PathTo)), None)
        if path is not None:
            return path.words
        if is_time(annotation):
            return "an amount of time"
        return "a duration" if is_duration(annotation) else describe(arguments[0])
    if origin in _NOUNS:
        return _NOUNS[origin]
    if origin is Mapping:
        return _described_container("a mapping", "value", "a mapping to {}", item_of(annotation))
    if origin not in (Sequence, tuple):
        return "any value"
    if (fixed := fixed_items(annotation)) is None:
        return _described_container("a list", "item", "a list of {}", item_of(annotation))
    plurals = {_plural(item) for item in fixed}
    if len(fixed) > 1 and len(plurals) == 1 and (plural := plurals.pop()):
        return f"a list of {len(fixed)} {plural}"
    return f"a list of {len(fixed)}: {', '.join(map(describe, fixed))}" if fixed else "an empty list"


def _described_container(noun: str, part: str, of_several: str, item: object) -> str:
    if describe(item) == "any value":
        return noun
    plural = _plural(item)
    return of_several.format(plural) if plural else f"{noun} in which each {part} is {describe(item)}"


def _described_union(alternatives: Sequence[object]) -> str:
    origins = {origin_of(item) for item in alternatives}
    described = [describe(item).removeprefix("one of ") for item in alternatives]
    words = [word for words in described for word in (words.split(" or ") if words == _NOUNS[bool] else [words])]
    *others, last = dict.fromkeys(words)
    text = f"{', '.join(others)} or {last}" if others else last
    return f"one of {text}" if Literal in origins and origins <= {Literal, NoneType} and "," in text else text


def _plural(annotation: object) -> str:
    """Return the plural of a type's noun; empty if it has none."""
    if origin_of(annotation) is not Annotated:
        noun = describe(annotation)
        return (
            f"{noun.removeprefix('a ')}s"
            if noun in ("a mapping", "a list")
            else _PLURALS.get(origin_of(annotation), "")
        )
    if is_duration(annotation) or is_time(annotation):
        return "durations" if is_duration(annotation) else "amounts of time"
    path = next((item for item in metadata_of(annotation) if isinstance(item, PathTo)), None)
    return "paths" if path and path.words == "a path" else _plural(get_args(annotation)[0])


def forms(annotation: object) -> str:
    """Return how a value of `annotation` is written if its description does not say it; may be empty."""
    if any(map(is_time, walk(annotation))):
        return TIME_FORMS
    return FORMS if any(map(is_duration, walk(annotation))) else ""
