"""Lines of text in UTF-8, with their ends; one that is none is a fault of its own."""

from __future__ import annotations

import gzip
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

from trainer.errors import DataError, format_error

UNREADABLE = (OSError, EOFError, zlib.error)
"""What reading a file raises that is missing, cut short or damaged."""


def text_lines(path: Path) -> Iterator[str]:
    """Lines of a text file in UTF-8, also as .gz, with their ends and without a byte order mark.

    Raises:
        DataError: The file cannot be read, or a line is not UTF-8.
    """
    for found in lines_or_faults(path):
        if isinstance(found, DataError):
            raise found
        yield found


def lines_or_faults(path: Path) -> Iterator[str | DataError]:
    """The same, but in the place of a line that is not UTF-8 stands what is wrong with it.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        lines = Lines(path)
        for line in lines:
            yield lines.take_fault() or line
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def decoded(line: bytes, place: str, offset: int) -> str | DataError:
    """A line as text, or what is wrong with it; `offset` is where it begins."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {line[error.start]:#04x} at offset {offset + error.start} of the file is not UTF-8"
        remedy = "Convert it: iconv -f GB18030 -t UTF-8, or from whatever encoding it has"
        return DataError(format_error(place, byte, remedy))


class Lines:
    """Lines with their ends, without a byte order mark; what is not UTF-8 is replaced, and a fault is kept for it.

    A reader of records takes the fault after each record, so that it is one of that record alone.
    """

    def __init__(self, path: Path) -> None:
        self._fault: DataError | None = None
        self._lines = self._read(path)

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def take_fault(self) -> DataError | None:
        """What was wrong with the lines since the last call."""
        fault, self._fault = self._fault, None
        return fault

    def _read(self, path: Path) -> Iterator[str]:
        offset = 0
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                text = decoded(line, f"{path}, line {number}", offset)
                if isinstance(text, DataError):
                    self._fault = self._fault or text
                    text = line.decode(errors="replace")
                yield text.removeprefix(BOM_UTF8.decode()) if number == 1 else text
                offset += len(line)


def unreadable(path: Path, error: Exception) -> DataError:
    """What is wrong with a file that cannot be read."""
    return DataError(
        format_error(str(path), f"cannot be read: {first_line(error)}", "Is it complete, and may you read it?")
    )


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
