"""Docstrings and signatures of the running interpreter's standard library: do the two belong together?"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from itertools import chain
from typing import TYPE_CHECKING

from trainer.data import stdlib
from trainer.data.rows import normalized
from trainer.data.splits import Sample

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when the same sources give something else."""


class StdlibPairs:
    """Columns `text` (a docstring), `text_pair` (a signature), `label` (`match` or `mismatch`) and `row`.

    Every docstring of a function or method of `data=stdlib_docs` comes twice: with its own signature, such as
    `def dump(obj, fp, *, skipkeys=False)`, and with a different one of another function of the library, drawn by a
    hash of the docstring. So half of the pairs match, and neither side alone tells which. Splits are those of
    `data=stdlib_docs`.
    """

    @cached_property
    def fingerprint(self) -> str:
        """Of the interpreter's version and the names and sizes of the sources; nothing is parsed."""
        return stdlib.fingerprint_of("pairs", _VERSION)

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits; a few seconds of parsing.

        Raises:
            DataError: The interpreter was installed without the sources of its library.
        """
        return stdlib.splits(["text", "text_pair", "label"], _samples())

    def where(self, split: str, row: int) -> str:
        """`json/decoder.py, line 53`."""
        return stdlib.where(row)

    def column(self, role: str) -> str:
        """`the column label of data=stdlib_pairs`: its columns have no names of the user's."""
        return stdlib.column(role, "stdlib_pairs")


def signature(function: stdlib.Function) -> str:
    """`def dump(obj, fp, *, skipkeys=False)`, on one line."""
    asynchronous = "async " if isinstance(function, ast.AsyncFunctionDef) else ""
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{asynchronous}def {function.name}({ast.unparse(function.args)}){returns}"


def _samples() -> Iterator[Sample]:
    found = []
    for docstring in stdlib.docstrings():
        node = docstring.found.node
        if isinstance(node, stdlib.Function):
            found.append((docstring.text, signature(node), docstring.row))
    # As often as they occur: a common signature must be as common among the mismatches.
    signatures = [own for _, own, _ in found]
    for text, own, row in found:
        yield Sample(row, {"text": text, "text_pair": own, "label": "match"}, text)
        if other := _other(text, own, signatures):
            yield Sample(row, {"text": text, "text_pair": other, "label": "mismatch"}, text)


def _other(text: str, own: str, signatures: Sequence[str]) -> str | None:
    """One of the `signatures` that is not `own`, the same at every call; None where there is none."""
    digest = blake2b(normalized(text).encode(), digest_size=8, person=b"mismatch").digest()
    start = int.from_bytes(digest, "big") % len(signatures)
    return next((found for found in chain(signatures[start:], signatures[:start]) if found != own), None)
