"""Calls in docstrings of the running interpreter's standard library, with the names that are in them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from trainer.data.splits import Sample
from trainer.data.stdlib import StdlibSource, docstrings
from trainer.data.stdlib_tokens import NAME, documented_parameters, find_entity, library_names

_VERSION = 1
"""Increase it if the same sources give different samples."""

_CALL = re.compile(r"(?<![\w.])[^\W\d]\w*(?:\.[^\W\d]\w*)*\(")
_MAX_CALL = 100
"""Characters of the longest call."""

Span = tuple[int, int, str]
"""The first character, the place after the last one, and the label."""


class StdlibSpans(StdlibSource):
    """Columns `text` and `spans` of the docstrings of `data=stdlib_docs`, and `row`.

    The labels are the three types of names of `data=stdlib_tokens` and calls, in which there may be names and calls:

    * `call`: a name and its parentheses, such as `json.dumps(obj)`;
    * `parameter`, `class` and `module`: as in `data=stdlib_tokens`; the module in front of a class is a span, too.

    Parameters, classes and modules come from the sources, which the texts by themselves do not reveal. The splits are
    the splits of `data=stdlib_docs`.
    """

    def __init__(self) -> None:
        super().__init__("stdlib_spans", ("text", "spans"), _read_samples, "spans", _VERSION)


def find_spans(
    text: str, parameters: Collection[str], classes: Collection[str], modules: Collection[str]
) -> list[Span]:
    """Return the spans of a docstring in the order of the text, an outer span before those in it."""
    spans = [(start, end, "call") for start, end in find_calls(text)]
    for name in NAME.finditer(text):
        if entity := find_entity(name, parameters, classes, modules):
            label, length = entity
            end = name.start() + length
            spans.append((name.start(), end, label))
            module = text[name.start() : end].rpartition(".")[0]
            if label == "class" and module in modules:
                spans.append((name.start(), name.start() + len(module), "module"))
    return sorted(spans, key=lambda span: (span[0], -span[1], span[2]))


def find_calls(text: str) -> Iterator[tuple[int, int]]:
    """Yield the first character of each call and the place after its last parenthesis."""
    for match in _CALL.finditer(text):
        depth = 0
        for place in range(match.end() - 1, min(len(text), match.start() + _MAX_CALL)):
            depth += {"(": 1, ")": -1}.get(text[place], 0)
            if depth == 0:
                yield match.start(), place + 1
                break


def _read_samples() -> Iterator[Sample]:
    classes, modules = library_names()
    for docstring in docstrings():
        places = find_spans(docstring.text, documented_parameters(docstring.documented.node), classes, modules)
        spans: list[dict[str, Any]] = [{"start": start, "end": end, "label": label} for start, end, label in places]
        yield Sample(docstring.row, {"text": docstring.text, "spans": spans}, docstring.text)
