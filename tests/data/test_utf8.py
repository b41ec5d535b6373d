"""Lines in UTF-8, and those that are none."""

from pathlib import Path

import pytest

from trainer.data.readers import read_lines, read_lines_or_errors
from trainer.errors import DataError


def test_a_line_that_is_not_utf_8_is_a_fault_of_its_own(tmp_path: Path) -> None:
    file = tmp_path / "mixed.txt"
    file.write_bytes(b"\xef\xbb\xbfone\ntw\xff\nthree\r\n\xfe")
    one, two, three, four = read_lines_or_errors(file)

    assert (one, three) == ("one\n", "three\r\n")
    assert str(two).startswith(f"{file}, line 2: byte 0xff at offset 9 of the file is not UTF-8. Convert the file")
    assert str(four).startswith(f"{file}, line 4: byte 0xfe")
    with pytest.raises(DataError, match="line 2"):
        list(read_lines(file))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    cut = tmp_path / "cut.txt.gz"
    cut.write_bytes(b"\x1f\x8b\x08\x00")

    with pytest.raises(DataError, match=r"cut\.txt\.gz: cannot be read: .*Check that"):
        list(read_lines_or_errors(cut))
