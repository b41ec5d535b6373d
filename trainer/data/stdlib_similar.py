"""First sentences of docstrings of the running interpreter's standard library, each with the text that follows it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from trainer.data.splits import Sample, normalize_whitespace
from trainer.data.stdlib import StdlibSource, docstrings

_VERSION = 1
"""Increase it if the same sources give different samples."""

_MIN_WORDS = 4
_SENTENCE_END = re.compile(r"\s*\n\s*\n[ \t]*|(?<=\w{2}[.!?])\s+(?=[A-Z])")
"""A blank line, or white space between a full stop (except the one of `i.e.`) and a capital letter."""


class StdlibSimilar(StdlibSource):
    """Columns `text` (the first sentence of a docstring), `positive` (the rest of the docstring) and `row`.

    Both have at least 4 words, and no two rows share a text: every other row is a true negative. The splits are the
    splits of `data=stdlib_docs`.
    """

    def __init__(self) -> None:
        super().__init__("stdlib_similar", ("text", "positive"), _read_samples, "similar", _VERSION)


def summary_and_rest(text: str) -> tuple[str, str]:
    """Split a docstring after its first sentence or paragraph; the rest is empty if there is nothing more."""
    end = _SENTENCE_END.search(text)
    return (text[: end.start()], text[end.end() :]) if end else (text, "")


def _read_samples() -> Iterator[Sample]:
    seen: tuple[set[str], set[str]] = set(), set()
    for docstring in docstrings():
        pair = summary_and_rest(docstring.text)
        keys = [normalize_whitespace(part) for part in pair]
        if any(key in known for key, known in zip(keys, seen, strict=True)):
            continue
        if all(len(key.split()) >= _MIN_WORDS for key in keys):
            for key, known in zip(keys, seen, strict=True):
                known.add(key)
            yield Sample(docstring.row, dict(zip(("text", "positive"), pair, strict=True)), docstring.text)
