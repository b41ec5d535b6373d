"""Open files that may come from anyone, and limit what is read from them: a small file can unpack to any size.

The limits are of the whole process, because files are read in many places. The keys `data.max_line_bytes` and
`data.max_pixels` set them.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path


@dataclass
class Limits:
    """The most that is read at once.

    Attributes:
        line_bytes: Bytes of a line or a cell of a text file.
        pixels: Pixels of an image.
    """

    line_bytes: int = 1 << 26
    pixels: int = 100_000_000


LIMITS = Limits()
"""The limits of this process."""

JSON_ERRORS = (ValueError, RecursionError)
"""Errors of parsing JSON: broken syntax, an integer of thousands of digits, and too many brackets."""


def open_input(path: Path) -> BufferedReader:
    """Open a regular file for reading; a pipe or a device could block for ever or never end.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def describe_json_error(error: Exception) -> str:
    """Return what is wrong with a JSON text, by one of `JSON_ERRORS`."""
    if isinstance(error, RecursionError):
        return "too many brackets inside each other"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno}: {error.msg}"
    return "broken JSON: an integer has too many digits"
