"""Lines of standard input, as they come."""

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from trainer.errors import DataError
from trainer.predict.stdin import stdin_lines


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Where a test writes what is read; it is the test's to close."""
    reading, writing = os.pipe()
    with os.fdopen(reading) as file:
        monkeypatch.setattr(sys, "stdin", file)
        yield writing


def test_a_line_is_given_when_it_is_there_and_none_before_a_wait(pipe: int) -> None:
    lines = stdin_lines()
    os.write(pipe, b"\xef\xbb\xbfone\ntwo\nthr")

    assert [next(lines) for _ in range(3)] == ["one", "two", None]
    os.write(pipe, "ee\n\nfünf".encode())
    assert [next(lines) for _ in range(3)] == ["three", "", None]
    os.close(pipe)
    assert list(lines) == ["fünf"]


def test_a_line_that_is_not_utf_8(pipe: int) -> None:
    os.write(pipe, b"one\nt\xffwo\nthree\n")
    os.close(pipe)
    one, two, three = (line for line in stdin_lines() if line is not None)

    assert (one, three) == ("one", "three")
    assert isinstance(two, DataError)
    assert str(two).startswith("standard input, line 2: byte 0xff at offset 5")


@pytest.mark.parametrize(("content", "expected"), [(b"", []), (b"\n", [""]), (b"a\r\n", ["a\r"])])
def test_ends(pipe: int, content: bytes, expected: list[Any]) -> None:
    os.write(pipe, content)
    os.close(pipe)
    assert [line for line in stdin_lines() if line is not None] == expected
