"""Documents: JSON as it is written, checked against a declared shape before it is used, and the seal of a document.

A shape is written as the document looks: `{"step": int, "files": {str: {"size": int}}, "note?": (str, None)}`.

* `int`, `float` (also an integer), `str`, `bool`, `None`; `object` allows everything.
* `[shape]` is a list of any length, `[shape, shape]` a list of these two, `(shape, shape)` a choice.
* `{str: shape}` is a mapping with any names, `{"name": shape}` has these fields; a name with `?` may be missing. More
  fields are allowed, so that an older version reads what a newer one has added.

This module is copied next to exported artifacts, so it needs only the standard library.
"""

from __future__ import annotations

import json
import os
import stat
import zlib
from collections.abc import Collection, Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

CHECKSUM = "checksum"
"""The field of a sealed document with the checksum of all other fields."""

LARGEST_DOCUMENT = 2**30
"""Bytes of the largest document."""
_DEEPEST = 100
_LARGEST_INTEGER = 2**64
_SHOWN_CHARACTERS = 60
_WORDS = {int: "an integer", float: "a number", str: "a text", bool: "true or false", None: "null"}
_TYPES: dict[object, tuple[type, ...]] = {int: (int,), float: (int, float), str: (str,), bool: (bool,)}


_Place = tuple["_Place", str | int] | None
"""The place of a value in a document: the place of its mapping or list, and its key; None for the document."""


class DocumentError(ValueError):
    """A document is not what was written. The message starts with the field, if one is wrong."""


def read_bytes(path: str | os.PathLike[str], largest: float = LARGEST_DOCUMENT) -> bytes:
    """Return the contents of a regular file of at most `largest` bytes.

    Raises:
        OSError: It cannot be read.
        DocumentError: It is no regular file, which could block for ever or never end, or it is larger.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise DocumentError("is not a regular file")
    if status.st_size > largest:
        raise DocumentError(f"has {status.st_size} bytes, more than any document")
    return Path(path).read_bytes()


def parse_json(data: bytes | str, shape: object = object, *, finite: bool = False) -> Any:
    """Return the JSON in `data`, which has the shape.

    Args:
        data: The text, as UTF-8 if it is bytes.
        shape: The shape, see the module.
        finite: Refuse NaN and infinity, for documents that are written without them.

    Raises:
        DocumentError: It is not JSON, has another shape, is nested deeply or has integers of more than 64 bits.
    """
    document = load_json(data)
    check_values(document, finite=finite)
    check_shape(document, shape)
    return document


def load_json(data: bytes | str) -> Any:
    """Return the JSON in `data`, whatever its values are.

    Raises:
        DocumentError: It is not JSON or not UTF-8, or is nested too deeply for the parser.
    """
    try:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise DocumentError("is not UTF-8 text") from error
    except RecursionError as error:
        raise DocumentError("is nested too deeply") from error
    except ValueError as error:
        raise DocumentError(f"is not JSON ({error})") from error


def check_values(document: object, *, finite: bool = False) -> None:
    """Check that a document has no value that JSON allows but that no document has.

    Raises:
        DocumentError: It is nested deeply, has integers of more than 64 bits or half of a character, or, if it must be
            finite, NaN or infinity.
    """
    for problem in _find_extremes(document, finite):
        raise DocumentError(problem)


def to_json(document: object, **options: Any) -> str:
    """Format a document as strict JSON: NaN and infinities, which JSON does not have, become null.

    Everything that other programs may read is written this way; `options` are options of `json.dumps`.
    """
    try:
        return json.dumps(document, allow_nan=False, **options)
    except ValueError:
        return json.dumps(_finite(document), allow_nan=False, **options)


def _finite(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def check_shape(document: object, shape: object) -> None:
    """Check that a document has a shape.

    Raises:
        DocumentError: It does not. The message starts with the first wrong field.
    """
    for problem in _find_problems(document, shape, ""):
        raise DocumentError(problem)


def seal(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a document with the checksum of them."""
    own = {name: value for name, value in fields.items() if name != CHECKSUM}
    return {**own, CHECKSUM: _checksum(own)}


def to_sealed_json(fields: Mapping[str, Any], **options: Any) -> str:
    """Format a document with the checksum of it as strict JSON, see `to_json`."""
    return to_json(seal({name: _finite(value) for name, value in fields.items()}), **options)


def _checksum(fields: dict[str, Any]) -> str:
    # Earlier versions have written NaN, and the checksum of it still is valid.
    own = {name: value for name, value in fields.items() if name != CHECKSUM}
    return f"{zlib.crc32(json.dumps(own, sort_keys=True).encode()):08x}"


def check_seal(fields: dict[str, Any]) -> None:
    """Check that a sealed document is what was written.

    Raises:
        DocumentError: A field has changed.
    """
    if fields.get(CHECKSUM) != _checksum(fields):
        raise DocumentError("does not match its own checksum")


def _find_extremes(document: object, finite: bool) -> Iterator[str]:
    """Yield a problem of values that JSON allows but that no document has."""
    if _is_ordinary([document], finite, _DEEPEST):
        return
    level: list[tuple[_Place, object]] = [(None, document)]
    for _ in range(_DEEPEST):
        for place, value in level:
            if isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
                yield f"{_name(place)}contains the integer {_show(value)}, which is out of range"
            elif finite and isinstance(value, float) and not isfinite(value):
                yield f"{_name(place)}contains the number {value}"
            elif isinstance(value, str) and not _is_text(value):
                yield f"{_name(place)}contains half of a character in {_show(value)}"
        keys = [key for _, value in level if isinstance(value, dict) for key in value if not _is_text(key)]
        if keys:
            yield f"contains half of a character in {_show(keys[0])}"
        inner = ((place, value) for place, value in level if isinstance(value, dict | list))
        level = [
            ((place, key), each)
            for place, value in inner
            for key, each in (value.items() if isinstance(value, dict) else enumerate(value))
        ]
    if level:
        yield f"is nested more than {_DEEPEST} levels deep"


def _is_ordinary(values: Collection[object], finite: bool, levels: int) -> bool:
    """Return whether no value is extreme, without the places: this costs a tenth, and almost every document is so."""
    if set(map(type, values)) == {float}:  # such as the cells of a table
        return not finite or all(map(isfinite, values))  # type: ignore[arg-type]
    for value in values:
        kind = type(value)
        if kind is str:
            if not _is_text(value):  # type: ignore[arg-type]
                return False
        elif kind is float:
            if finite and not isfinite(value):  # type: ignore[arg-type]
                return False
        elif kind is int:
            if not -_LARGEST_INTEGER < value < _LARGEST_INTEGER:  # type: ignore[operator]
                return False
        elif isinstance(value, dict):
            if levels == 1 or not _is_text("".join(value)) or not _is_ordinary(value.values(), finite, levels - 1):
                return False
        elif isinstance(value, list) and (levels == 1 or not _is_ordinary(value, finite, levels - 1)):
            return False
    return True


def _name(place: _Place) -> str:
    """Return the field at a place for the start of a message: `a.b[0]: `."""
    field = ""
    while place is not None:
        place, key = place
        field = f"[{key}]{field}" if isinstance(key, int) else f".{_show(key)[1:-1]}{field}"
    return f"{field.removeprefix('.')}: " if field else ""


def _is_text(value: str) -> bool:
    """Return whether a text can be written: JSON may contain half of a surrogate pair."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _find_problems(value: object, shape: object, path: str) -> Iterator[str]:
    """Yield the problem of each field that does not fit."""
    start = f"{path}: " if path else ""
    if shape is object:
        return
    if isinstance(shape, tuple):
        alternatives = [list(_find_problems(value, each, path)) for each in shape]
        if all(alternatives):
            # An object or a list that does not fit says more than "must be one of these".
            inner = [problems[0] for problems, each in zip(alternatives, shape, strict=True) if _has_kind(value, each)]
            yield inner[0] if inner else f"{start}must be {' or '.join(map(_describe, shape))}, got {_show(value)}"
    elif not _has_kind(value, shape):
        yield f"{start}must be {_describe(shape)}, got {_show(value)}"
    elif isinstance(shape, list):
        assert isinstance(value, list)
        if len(shape) > 1 and len(value) != len(shape):
            yield f"{start}must have {len(shape)} items, got {_show(value)}"
        if shape == [object]:
            return
        items = shape if len(shape) > 1 else shape * len(value)
        for position, (each, item) in enumerate(zip(value, items, strict=False)):
            yield from _find_problems(each, item, f"{path}[{position}]")
    elif isinstance(shape, dict):
        assert isinstance(value, dict)
        prefix = f"{path}." if path else ""
        for name, inner_shape in shape.items():
            field = name if name is str else name.removesuffix("?")
            if name is str:
                for key, each in value.items():
                    yield from _find_problems(each, inner_shape, f"{prefix}{_show(key)[1:-1]}")
            elif field in value:
                yield from _find_problems(value[field], inner_shape, f"{prefix}{field}")
            elif field == name:
                yield f"{prefix}{field}: is missing"


def _has_kind(value: object, shape: object) -> bool:
    """Return whether a value has the type of a shape, whatever it contains."""
    if isinstance(shape, dict | list):
        return isinstance(value, type(shape))
    if shape is None:
        return value is None
    return isinstance(value, _TYPES[shape]) and (shape is bool or not isinstance(value, bool))


def _describe(shape: object) -> str:
    if isinstance(shape, dict | list):
        return "a list" if isinstance(shape, list) else "an object"
    return _WORDS[shape]  # type: ignore[index]  # all others


def _show(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= _LARGEST_INTEGER:
        return f"of {value.bit_length()} bits"
    text = json.dumps(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
