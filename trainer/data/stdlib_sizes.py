"""Docstrings of functions of the running interpreter's standard library, each with the size of its function."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator

from trainer.data.splits import Sample
from trainer.data.stdlib import Function, StdlibSource, docstrings, parameter_names

_VERSION = 1
"""Increase it if the same sources give different samples."""

_RECEIVERS = ("self", "cls")


class StdlibSizes(StdlibSource):
    """Columns `text` (a function's docstring), `value` and `row`.

    `value` contains two numbers: the number of parameters, without the receiver of a method, and the logarithm to base
    2 of the number of lines without the docstring. The splits are the splits of `data=stdlib_docs`.
    """

    def __init__(self) -> None:
        super().__init__("stdlib_sizes", ("text", "value"), _read_samples, "sizes", _VERSION)


def measure(function: Function) -> list[float]:
    """Return the number of parameters of a documented function, and the logarithm of its lines beyond the docstring."""
    names = parameter_names(function)
    if names[:1] and names[0] in _RECEIVERS:
        names = names[1:]
    lines = _num_lines(function) - _num_lines(function.body[0])
    return [float(len(names)), math.log2(max(1, lines))]


def _num_lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def _read_samples() -> Iterator[Sample]:
    for docstring in docstrings():
        node = docstring.documented.node
        if isinstance(node, Function):
            yield Sample(docstring.row, {"text": docstring.text, "value": measure(node)}, docstring.text)
