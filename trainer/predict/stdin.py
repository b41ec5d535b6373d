"""The lines of standard input, as they come."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Iterator

from trainer.data.readers import decode_line
from trainer.errors import DataError

_PIECE = 1 << 16


def stdin_lines() -> Iterator[str | DataError | None]:
    """Lines without a byte order mark, a DataError in the place of one that is not UTF-8, None before a wait.

    So whoever writes a line and waits for its answer gets it, and a long pipe is read in large pieces.
    """
    pieces = _pieces(sys.stdin.fileno())
    rest, number, offset = b"", 0, 0
    for piece in pieces:
        if piece is None:
            yield None
            continue
        *lines, rest = (rest + piece).split(b"\n") if piece else [rest, b""]
        for line in lines:
            number += 1
            if piece or line:  # what the end leaves is a line unless it is empty
                yield decode_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, _place(number), offset)
            offset += len(line) + 1


def _pieces(descriptor: int) -> Iterator[bytes | None]:
    """What there is to read, the empty piece at the end; None before a wait."""
    while True:
        if not select.select([descriptor], [], [], 0)[0]:
            yield None
        piece = os.read(descriptor, _PIECE)
        yield piece
        if not piece:
            return


def _place(number: int) -> str:
    return f"standard input, line {number}"
