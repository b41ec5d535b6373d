"""The JSON of requests and answers: what a body says, checked, and the text of an answer.

msgspec parses and writes several times as fast as Python's json, which does the same without it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

from trainer.serve.openapi import STATUSES
from trainer.shapes import DocumentError, check_shape, check_values, load_json, to_json

msgspec_json: Any = None
with suppress(ImportError):
    from msgspec import json as msgspec_json

Decode = Callable[[bytes], Any]
_LARGEST_INTEGER = 2**64
_SHOWN_CHARACTERS = 300
_PLAIN_TYPES = frozenset({float, int, str, bool, type(None)})
"""Types of cells that a strict parser has checked, except for the size of integers."""

decode_strictly: Decode | None = msgspec_json and msgspec_json.Decoder().decode
"""Parses JSON and refuses NaN, infinity and half characters; None if msgspec is not installed."""


class RequestError(Exception):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, problem: str, **headers: str) -> None:
        assert status in STATUSES
        super().__init__(problem)
        self.status, self.headers = status, headers


def parse_body(body: bytes, max_rows: int, decode: Decode | None = decode_strictly) -> tuple[list[Any], int]:
    """Return the rows of a request, and `top`.

    Args:
        body: The body.
        max_rows: Largest number of rows. They are counted before each is looked at, which takes longer than parsing.
        decode: A strict parser. What it refuses, Python's json reads again, which decides and says what is wrong.

    Raises:
        RequestError: It is no request.
    """
    try:
        document, is_strict = _load(body, decode)
        check_shape(document, {"rows": [object], "top?": int})
        if len(document["rows"]) > max_rows:
            problem = f"rows: at most {max_rows} per request (max_rows), got {len(document['rows'])}."
            raise RequestError(413, f"{problem} Send several requests.")
        if not (is_strict and _are_plain(document["rows"])):
            check_values(document, finite=True)
    except DocumentError as error:
        raise RequestError(400, f'{error}. Expected {{"rows": [...], "top": 1}}.') from None
    if unknown := document.keys() - {"rows", "top"}:
        raise RequestError(400, f"unknown field {cut(min(unknown))!r}. Known: rows, top.")
    if repeated := _find_repeated(body, document):
        raise RequestError(400, f"the field {cut(repeated)!r} appears twice in an object. Send it once.")
    rows, top = document["rows"], document.get("top", 1)
    if not rows:
        raise RequestError(400, "rows: is empty. Send at least one row.")
    if top < 1:
        raise RequestError(400, f"top: must be at least 1, got {top}.")
    return rows, top


def format_answer(document: dict[str, Any]) -> bytes:
    """Return a document as strict JSON, see `trainer.shapes.to_json`."""
    if msgspec_json is not None:
        try:
            text: bytes = msgspec_json.encode(document)
            return text
        except Exception:  # such as for an integer of more than 64 bits, which json can write
            pass
    return to_json(document, ensure_ascii=False).encode()


def cut(text: str) -> str:
    """Return the start of a text of a client, which a message repeats."""
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _load(body: bytes, decode: Decode | None) -> tuple[Any, bool]:
    """Return the JSON, and whether a strict parser has read it."""
    if decode is not None:
        try:
            return decode(body), True
        except Exception:  # of many types: not JSON, not UTF-8, nested too deeply
            pass
    return load_json(body), False


def _are_plain(rows: list[Any]) -> bool:
    """Return whether rows that a strict parser has read need no further check: texts, or flat without huge integers."""
    kinds = set(map(type, rows))
    if kinds != {dict}:
        return kinds == {str}
    kinds = set(map(type, _cells(rows)))
    return kinds <= _PLAIN_TYPES and (
        int not in kinds or all(abs(cell) < _LARGEST_INTEGER for cell in _cells(rows) if type(cell) is int)
    )


def _cells(rows: list[dict[str, Any]]) -> Iterator[Any]:
    return chain.from_iterable(map(dict.values, rows))


def _find_repeated(body: bytes, document: dict[str, Any]) -> str | None:
    """Return a key that an object of the body has several times; a parser keeps the last of its values."""
    keys = len(document) + sum(len(row) for row in document["rows"] if isinstance(row, dict))
    if body.count(b":") == keys:  # each key has a colon, so this says for most bodies of numbers that none is repeated
        return None
    repeated: list[str] = []

    def read(pairs: list[tuple[str, object]]) -> None:
        if len(pairs) > len(dict(pairs)):
            repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    json.loads(body, object_pairs_hook=read)
    return repeated[0] if repeated else None
