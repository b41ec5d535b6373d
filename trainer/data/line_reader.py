"""Read lines of text files one by one. A problem is a `DataError` that names the file and the line."""

from __future__ import annotations

import errno
import re
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from trainer.errors import DataError, format_error
from trainer.files.untrusted import LIMITS, open_unpacked

_BYTE_ORDER_MARKS = {
    BOM_UTF32_LE: "UTF-32",
    BOM_UTF32_BE: "UTF-32",
    BOM_UTF16_LE: "UTF-16",
    BOM_UTF16_BE: "UTF-16",
}
"""The encoding that a file begins with; the mark of UTF-32 begins like the one of UTF-16."""

_PUNCTUATION = r"[\u3000-\u303f\uff00-\uffef\u2010-\u2026\u00b7]"
_EAST_ASIAN = (
    ("euc_kr", "CP949", 0xFD, re.compile(f"(?:[\uac00-\ud7af]|{_PUNCTUATION}){{6,}}")),
    ("gb2312", "GB18030", 0xF7, re.compile(f"(?:[\u4e00-\u9fff]|{_PUNCTUATION})+")),
    ("shift_jis", "CP932", 0xEA, re.compile(f"(?:[\u3040-\u30ff\u4e00-\u9fff]|{_PUNCTUATION})*[\u3041-\u3096].*")),
    ("big5", "BIG5", 0xC6, re.compile(f"(?:[\u4e00-\u9fff]|{_PUNCTUATION}){{4,}}")),
)
"""Encodings of East Asian texts: the codec, the name for iconv, the last first byte of a frequent character, a pattern.

The order and the least numbers of characters are those by which a short text is rarely taken for another one. Accents
of Western texts stand alone between ASCII letters, so most of these codecs refuse them.
"""

_FREQUENT_SYLLABLES = frozenset(
    "이다는의에을가고하한지사도로기은를어나서자대아리시인해스라수정일들전보부제주구그장상있으원만여게면생조연국소니위신경실개화진오유세안과동관방적무문미성년했회공업당차본요물선모드말학"
    "내용교비중민계때우치양군러터식바마트할간습없음것같좋품평점글번호작뷰목날짜분류감별명름메뉴댓영매출질답"
)
"""The most frequent syllables of Korean texts. Frequent Chinese characters have the bytes of rare syllables."""

READ_ERRORS = (OSError, EOFError, zlib.error)
"""Errors of reading a file that is missing, truncated or damaged."""


_CHUNK = 1 << 20
"""Bytes of a line that is too long that are skipped at once."""

_REPLACED = "\N{REPLACEMENT CHARACTER}\n"
"""The line in the place of one that is too long."""


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 text file, plain or .gz, with their line ends and without a byte order mark.

    Raises:
        DataError: The file cannot be read, or a line is not UTF-8.
    """
    for line in read_lines_or_errors(path):
        if isinstance(line, DataError):
            raise line
        yield line


def read_lines_or_errors(path: Path) -> Iterator[str | DataError]:
    """Yield the lines as `read_lines` does, with an error in the place of a line that is not UTF-8.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        lines = LineReader(path)
        for line in lines:
            yield lines.take_error() or line
    except READ_ERRORS as error:
        raise unreadable_error(path, error) from error


def decode_line(line: bytes, place: str, offset: int) -> str | DataError:
    """Return a line as text, or the error if it is not UTF-8.

    Args:
        line: The bytes of the line.
        place: The file and the line, for the message.
        offset: The position of the line in the file, in bytes.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = f"byte {line[error.start]:#04x} at offset {offset + error.start} of the file is not UTF-8"
        remedy = f"Convert the file to UTF-8, for example: {_conversion(line, offset, place)}"
        return DataError(format_error(place, byte, remedy))


def _conversion(line: bytes, offset: int, place: str) -> str:
    """Return the command that converts the file of a line that is not UTF-8."""
    marks = (name for mark, name in _BYTE_ORDER_MARKS.items() if offset == 0 and line.startswith(mark))
    encoding = next(marks, None) or _guess_encoding(line)
    convert = f"iconv -f {encoding or 'ENCODING'} -t UTF-8"
    is_compressed = place.rpartition(", ")[0].lower().endswith(".gz")
    return f"gzip -dc OLD | {convert} | gzip > NEW" if is_compressed else f"{convert} OLD > NEW"


def _guess_encoding(line: bytes) -> str | None:
    """Return the encoding that a line without a mark is probably in; None if no frequent one is possible."""
    for codec, name, last_lead, pattern in _EAST_ASIAN:
        with suppress(UnicodeDecodeError):
            characters = "".join(each for each in line.decode(codec) if not each.isascii())
            if name == "CP949" and 2 * sum(map(_FREQUENT_SYLLABLES.__contains__, characters)) < len(characters):
                continue
            if pattern.fullmatch(characters) and all(each.encode(codec)[0] <= last_lead for each in characters):
                return name
    with suppress(UnicodeDecodeError):
        line.decode("cp1252")
        return "WINDOWS-1252"
    return None


class LineReader:
    """Iterate over the lines of a file with their ends, without a byte order mark; keep an error for each bad line.

    Bytes that are not UTF-8 and lines that are too long are replaced. A parser of records takes the error after each
    record, so that the error affects this record only.
    """

    def __init__(self, path: Path) -> None:
        self._error: DataError | None = None
        self._lines = self._read(path)

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def take_error(self) -> DataError | None:
        """Return and clear the first error in the lines since the last call."""
        error, self._error = self._error, None
        return error

    def _read(self, path: Path) -> Iterator[str]:
        number = offset = 0
        limit = LIMITS.line_bytes
        with open_unpacked(path) as file:
            while line := file.readline(limit + 1):
                number += 1
                place = f"{path}, line {number}"
                size = len(line)
                if size > limit:
                    while line and not line.endswith(b"\n"):
                        line = file.readline(_CHUNK)
                        size += len(line)
                    self._error = self._error or long_line_error(place)
                    yield _REPLACED
                else:
                    text = decode_line(line, place, offset)
                    if isinstance(text, DataError):
                        self._error = self._error or text
                        text = line.decode(errors="replace")
                    yield text.removeprefix(BOM_UTF8.decode()) if number == 1 else text
                offset += size


def long_line_error(place: str) -> DataError:
    """Return the error for a line that is too long."""
    problem = f"is longer than {LIMITS.line_bytes} bytes"
    return DataError(format_error(place, problem, "Check the file, or raise data.max_line_bytes"))


def unreadable_error(path: Path, error: Exception) -> DataError:
    """Return the error for a file that cannot be read."""
    remedy = "Check that the file is complete and that you have permission to read it"
    if isinstance(error, OSError) and error.errno == errno.ENODEV:
        remedy = "Write what it yields into a file first"
    return DataError(format_error(str(path), f"cannot be read: {first_line_of(error)}", remedy))


def first_line_of(error: Exception) -> str:
    """Return the first line of an error's message."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
