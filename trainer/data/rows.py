"""What rows of every source have: a place they came from, and a split that follows from their text."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from math import isnan
from typing import Any

_RECORD_BITS = 40


def normalized(text: str) -> str:
    """`text` with every run of white space as one space: texts that are equal here count as duplicates."""
    return " ".join(text.split())


def split_of(text: str, shares: Mapping[str, float]) -> str:
    """The split a text belongs to: a function of the text alone, so duplicates share a split and order does not matter.

    Args:
        text: The text of a row.
        shares: The share of each split beside `train`, in [0, 1); what they leave is `train`. A larger share of the
            last split takes its rows from `train` and moves no others.
    """
    digest = blake2b(normalized(text).encode(), digest_size=8).digest()
    point = int.from_bytes(digest, "big") / 2**64
    for split, share in shares.items():
        if point < share:
            return split
        point -= share
    return "train"


def row_id(file: int, record: int) -> int:
    """The column `row` (int64): a position in a list of files and a number within that file, 1-based."""
    assert 0 <= file < 1 << 23
    assert 0 < record < 1 << _RECORD_BITS
    return file << _RECORD_BITS | record


def place(row: int) -> tuple[int, int]:
    """The inverse of `row_id`: (file, record)."""
    return row >> _RECORD_BITS, row & (1 << _RECORD_BITS) - 1


def as_text(value: Any) -> str | None:
    """A text or a label as a string: 3, 3.0 and True are `3`, `3` and `1`; None where there is none (None, NaN).

    Raises:
        ValueError: It is neither a string nor a number, or no string that can be written.
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("half of a surrogate pair is no character") from None
        return value
    if value is None:
        return None
    if isinstance(value, float) and not value.is_integer():
        return None if isnan(value) else str(value)
    if isinstance(value, int | float):
        return str(int(value))
    raise ValueError(f"expected a string, got {type(value).__name__}")
