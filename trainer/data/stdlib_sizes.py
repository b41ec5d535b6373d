"""Docstrings of functions of the running interpreter's standard library, each with how large its function is."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from trainer.data import stdlib
from trainer.data.splits import Sample

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when the same sources give something else."""

_RECEIVERS = ("self", "cls")


class StdlibSizes:
    """Columns `text` (a function's docstring), `value` and `row`.

    `value` holds two numbers: how many parameters the function has, without the receiver of a method, and the
    logarithm to base 2 of how many lines it spans without its docstring. Splits are those of `data=stdlib_docs`.
    """

    @cached_property
    def fingerprint(self) -> str:
        """Of the interpreter's version and the names and sizes of the sources; nothing is parsed."""
        return stdlib.fingerprint_of("sizes", _VERSION)

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits; a few seconds of parsing.

        Raises:
            DataError: The interpreter was installed without the sources of its library.
        """
        return stdlib.splits(["text", "value"], _samples())

    def where(self, split: str, row: int) -> str:
        """`json/decoder.py, line 53`."""
        return stdlib.where(row)

    def column(self, role: str) -> str:
        """`the column value of data=stdlib_sizes`: its columns have no names of the user's."""
        return stdlib.column(role, "stdlib_sizes")


def sizes(function: stdlib.Function) -> list[float]:
    """How many parameters a function with a docstring has, and the logarithm of how many further lines."""
    given = function.args
    names = [argument.arg for argument in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [argument.arg for argument in (given.vararg, given.kwarg) if argument is not None]
    if names[:1] and names[0] in _RECEIVERS:
        names = names[1:]
    documentation = function.body[0]
    lines = _lines(function) - _lines(documentation)
    return [float(len(names)), math.log2(max(1, lines))]


def _lines(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def _samples() -> Iterator[Sample]:
    for docstring in stdlib.docstrings():
        node = docstring.found.node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Sample(docstring.row, {"text": docstring.text, "value": sizes(node)}, docstring.text)
