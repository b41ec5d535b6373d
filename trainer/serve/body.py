"""The JSON of requests and answers: what a body says, checked, and the text of an answer.

msgspec parses and writes several times as fast as Python's json, which does the same without it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from typing import Any

from trainer.serve.columns import Columns, read_columns
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
_EXPECTED = 'Expected {"rows": [...], "top": 1}, or "columns": {"NAME": [...]} in the place of "rows".'
_FIELDS = ("rows", "columns", "top")
_KEY_ENDS = re.compile(rb'"[ \t\n\r]*:')

decode_strictly: Decode | None = msgspec_json and msgspec_json.Decoder().decode
"""Parses JSON and refuses NaN, infinity and half characters; None if msgspec is not installed."""


class RequestError(Exception):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, status: int, problem: str, **headers: str) -> None:
        assert status in STATUSES
        super().__init__(problem)
        self.status, self.headers = status, headers


def parse_body(body: bytes, max_rows: int, decode: Decode | None = decode_strictly) -> tuple[list[Any] | Columns, int]:
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
        has_columns = isinstance(document, dict) and "columns" in document
        check_shape(document, {"columns" if has_columns else "rows": {} if has_columns else [object], "top?": int})
        if has_columns:
            _check_columns(document)
        count = _count_columns(document["columns"]) if has_columns else len(document["rows"])
        if count > max_rows:
            problem = f"rows: at most {max_rows} per request (max_rows), got {count}."
            raise RequestError(413, f"{problem} Send several requests.")
        items = Columns(read_columns(document["columns"]), count) if has_columns else document["rows"]
        if not (is_strict and _are_plain(items)):
            check_values(document, finite=True)
    except DocumentError as error:
        raise RequestError(400, f"{error}. {_EXPECTED}") from None
    if unknown := document.keys() - set(_FIELDS):
        raise RequestError(400, f"unknown field {cut(min(unknown))!r}. Known: {', '.join(_FIELDS)}.")
    if repeated := _find_repeated(body, document):
        raise RequestError(400, f"the field {cut(repeated)!r} appears twice in an object. Send it once.")
    top = document.get("top", 1)
    if not count:
        raise RequestError(400, f"{'columns' if has_columns else 'rows'}: is empty. Send at least one row.")
    if top < 1:
        raise RequestError(400, f"top: must be at least 1, got {top}.")
    return items, top


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


def _check_columns(document: dict[str, Any]) -> None:
    """Check that a request has columns and no rows, and that each column is a list.

    Raises:
        DocumentError: A column is not a list.
        RequestError: There are rows, too.
    """
    columns = document["columns"]
    if "rows" in document:
        raise RequestError(400, "rows, columns: both are there. Send one of them.")
    if any(type(cells) is not list for cells in columns.values()):
        check_shape(document, {"columns": {str: [object]}})


def _count_columns(columns: dict[str, list[Any]]) -> int:
    """Return the number of rows in columns.

    Raises:
        RequestError: The columns differ in it.
    """
    counts = {len(cells): name for name, cells in columns.items()}
    if len(counts) > 1:
        (count, name), (other_count, other), *_ = counts.items()
        problem = f"{cut(name)!r} has {count} and {cut(other)!r} has {other_count}"
        raise RequestError(400, f"columns: {problem}. Send a cell of each row in every column, null for none.")
    return next(iter(counts), 0)


def _are_plain(items: list[Any] | Columns) -> bool:
    """Return whether rows that a strict parser has read need no further check: texts, or flat without huge integers."""
    if isinstance(items, Columns):
        lists = [cells for cells in items.cells.values() if isinstance(cells, list)]
    elif set(map(type, items)) == {dict}:
        lists = [row.values() for row in items]
    else:
        lists = [items]
    kinds = set(map(type, chain.from_iterable(lists)))
    return kinds <= _PLAIN_TYPES and (
        int not in kinds
        or all(abs(cell) < _LARGEST_INTEGER for cell in chain.from_iterable(lists) if type(cell) is int)
    )


def _find_repeated(body: bytes, document: dict[str, Any]) -> str | None:
    """Return a key that an object of the body has several times; a parser keeps the last of its values."""
    rows = document["rows"] if "rows" in document else [document["columns"]]
    keys = len(document) + sum(len(row) for row in rows if isinstance(row, dict))
    # Each key ends with a quote and a colon, so as many of them as keys say for most bodies that no key is repeated.
    if body.count(b":") == keys or len(_KEY_ENDS.findall(body)) == keys:
        return None
    repeated: list[str] = []

    def read(pairs: list[tuple[str, object]]) -> None:
        if len(pairs) > len(dict(pairs)):
            repeated.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    json.loads(body, object_pairs_hook=read)
    return repeated[0] if repeated else None
