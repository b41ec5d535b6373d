"""Open files that may come from anyone, and limit what is read from them: a small file can unpack to any size.

The limits are of the whole process, because files are read in many places. The keys `data.max_line_bytes`,
`data.max_expansion` and `data.max_pixels` set them.
"""

from __future__ import annotations

import errno
import gzip
import json
import os
import stat
from dataclasses import dataclass
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import Any

from trainer.errors import DataError, format_error

_ALWAYS_UNPACKED = 1 << 24
"""Bytes that any compressed file may unpack to."""


@dataclass
class Limits:
    """The most that is read at once.

    Attributes:
        line_bytes: Bytes of a line or a cell of a text file.
        expansion: Ratio of the unpacked to the compressed size of a file.
        pixels: Pixels of an image.
    """

    line_bytes: int = 1 << 26
    expansion: int = 200
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
        raise OSError(errno.ENODEV, "it is not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def open_unpacked(path: Path) -> BufferedReader:
    """Open a regular file for reading as `open_input` does; a file that ends in .gz is unpacked.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
    """
    file = open_input(path)
    return BufferedReader(_GzipContents(path, file), 1 << 17) if path.suffix.lower() == ".gz" else file


class Unpacked:
    """The bytes that a file has unpacked to.

    Args:
        path: The file.
        packed: The bytes of the file that have been read.
    """

    def __init__(self, path: Path, packed: int = 0) -> None:
        self._path, self._size = path, 0
        self.packed = packed

    def add(self, count: int) -> None:
        """Add bytes.

        Raises:
            DataError: There are more than the limit for the bytes that have been read.
        """
        self._size += count
        if self._size > max(_ALWAYS_UNPACKED, LIMITS.expansion * self.packed):
            problem = f"unpacks to more than {LIMITS.expansion} times its size"
            raise DataError(format_error(str(self._path), problem, "Check the file, or raise data.max_expansion"))


class _GzipContents(RawIOBase):
    """The contents of a .gz file; a DataError in the place of contents beyond the limit."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        super().__init__()
        self._unpacked = Unpacked(path)
        self._file = file
        self._contents = gzip.GzipFile(fileobj=file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._contents.readinto(buffer)
        self._unpacked.packed = self._file.tell()
        self._unpacked.add(count)
        return count

    def close(self) -> None:
        self._contents.close()
        self._file.close()
        super().close()


def describe_json_error(error: Exception) -> str:
    """Return what is wrong with a JSON text, by one of `JSON_ERRORS`."""
    if isinstance(error, RecursionError):
        return "too many brackets inside each other"
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno}: {error.msg}"
    return "broken JSON: an integer has too many digits"
