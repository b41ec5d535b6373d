"""Summaries of the running interpreter's standard library, each with what follows it: two texts of one meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from trainer.data import stdlib
from trainer.data.rows import normalized
from trainer.data.splits import Sample

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when the same sources give something else."""

_MIN_WORDS = 4
_END = re.compile(r"\s*\n\s*\n[ \t]*|(?<=\w{2}[.!?])\s+(?=[A-Z])")
"""A blank line, or white space between a full stop (not that of `i.e.`) and a capital letter."""


class StdlibSimilar:
    """Columns `text` (the first sentence of a docstring), `positive` (the rest of it) and `row`.

    Both have at least 4 words, and no two rows share a text: every other row is a true negative. Splits are those of
    `data=stdlib_docs`.
    """

    @cached_property
    def fingerprint(self) -> str:
        """Of the interpreter's version and the names and sizes of the sources; nothing is parsed."""
        return stdlib.fingerprint_of("similar", _VERSION)

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits; a few seconds of parsing.

        Raises:
            DataError: The interpreter was installed without the sources of its library.
        """
        return stdlib.splits(["text", "positive"], _samples())

    def where(self, split: str, row: int) -> str:
        """`json/decoder.py, line 53`."""
        return stdlib.where(row)

    def column(self, role: str) -> str:
        """`the column text of data=stdlib_similar`: its columns have no names of the user's."""
        return stdlib.column(role, "stdlib_similar")


def summary_and_rest(text: str) -> tuple[str, str]:
    """A docstring divided behind its first sentence or paragraph; the second is empty where there is no more."""
    end = _END.search(text)
    return (text[: end.start()], text[end.end() :]) if end else (text, "")


def _samples() -> Iterator[Sample]:
    seen: tuple[set[str], set[str]] = set(), set()
    for docstring in stdlib.docstrings():
        pair = summary_and_rest(docstring.text)
        keys = [normalized(part) for part in pair]
        if any(key in known for key, known in zip(keys, seen, strict=True)):
            continue
        if all(len(key.split()) >= _MIN_WORDS for key in keys):
            for key, known in zip(keys, seen, strict=True):
                known.add(key)
            yield Sample(docstring.row, dict(zip(("text", "positive"), pair, strict=True)), docstring.text)
