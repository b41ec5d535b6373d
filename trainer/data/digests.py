"""What tells that two rows are the same, without keeping them: a number for the inputs and one for the target."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from trainer.data.rows import normalized
from trainer.protocols import Columns

INPUT, TARGET = "input_digest", "target_digest"
"""Columns of encoded data, int64."""

_TARGETS = frozenset({"label", "labels", "value", "score", "tags"})


def digests(rows: Columns, roles: Sequence[str]) -> dict[str, list[int]]:
    """The columns `input_digest` and `target_digest` of raw rows; white space does not tell texts apart."""
    inputs = [role for role in roles if role not in _TARGETS]
    targets = [role for role in roles if role in _TARGETS]
    return {name: _digests(rows, chosen) for name, chosen in ((INPUT, inputs), (TARGET, targets))}


def of_blocks(known: Columns, blocks: Sequence[int]) -> dict[str, list[int]]:
    """Digests and rows of raw rows as those of their blocks; `blocks` says of which raw row each is one, rising.

    The first block has the digests of its row, the n-th ones of its own: two rows that are the same have the same
    blocks, and no block is the same as another one of its row.
    """
    starts = {row: first for first, row in reversed(list(enumerate(blocks)))}
    numbers = [position - starts[row] for position, row in enumerate(blocks)]
    found = {"row": [known["row"][row] for row in blocks], TARGET: [known[TARGET][row] for row in blocks]}
    inputs = [known[INPUT][row] for row in blocks]
    found[INPUT] = [_digest([one, number]) if number else one for one, number in zip(inputs, numbers, strict=True)]
    return found


def empty_digests() -> frozenset[int]:
    """The `input_digest` of rows of which no text has anything in it."""
    return frozenset(_digest([""] * number) for number in range(1, 4))


def _digests(rows: Columns, roles: Sequence[str]) -> list[int]:
    return [_digest(values) for values in zip(*(rows[role] for role in roles), strict=True)] or [0] * len(rows["row"])


def _digest(values: Sequence[Any]) -> int:
    known = blake2b(digest_size=8)
    for value in values:
        known.update(_bytes(value))
        known.update(b"\0")
    return int.from_bytes(known.digest(), "big", signed=True)


def _bytes(value: Any) -> bytes:
    if isinstance(value, str):
        return normalized(value).encode()
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        content: bytes = value["bytes"]
        return content
    return json.dumps(value, sort_keys=True, default=str).encode()
