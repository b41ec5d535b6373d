"""Docstrings and signatures of the running interpreter's standard library: do the two belong together?"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import chain

from trainer.data.splits import Sample, normalize_whitespace
from trainer.data.stdlib import Function, StdlibSource, docstrings

_VERSION = 1
"""Increase it if the same sources give different samples."""


class StdlibPairs(StdlibSource):
    """Columns `text` (a docstring), `text_pair` (a signature), `label` (`match` or `mismatch`) and `row`.

    Every docstring of a function or method in `data=stdlib_docs` occurs twice: with its own signature, such as
    `def dump(obj, fp, *, skipkeys=False)`, and with a different signature of another function of the library, chosen
    by a hash of the docstring. So half of the pairs match, and neither side by itself reveals the label. The splits are
    the splits of `data=stdlib_docs`.
    """

    def __init__(self) -> None:
        super().__init__("stdlib_pairs", ("text", "text_pair", "label"), _read_samples, "pairs", _VERSION)


def signature(function: Function) -> str:
    """Return `def dump(obj, fp, *, skipkeys=False)`, on one line."""
    asynchronous = "async " if isinstance(function, ast.AsyncFunctionDef) else ""
    returns = f" -> {ast.unparse(function.returns)}" if function.returns else ""
    return f"{asynchronous}def {function.name}({ast.unparse(function.args)}){returns}"


def _read_samples() -> Iterator[Sample]:
    functions = []
    for docstring in docstrings():
        node = docstring.documented.node
        if isinstance(node, Function):
            functions.append((docstring.text, signature(node), docstring.row))
    # With repetitions: a common signature must be as common among the mismatches.
    signatures = [own for _, own, _ in functions]
    for text, own, row in functions:
        yield Sample(row, {"text": text, "text_pair": own, "label": "match"}, text)
        if other := _other_signature(text, own, signatures):
            yield Sample(row, {"text": text, "text_pair": other, "label": "mismatch"}, text)


def _other_signature(text: str, own: str, signatures: Sequence[str]) -> str | None:
    """Return one of the `signatures` that differs from `own`, the same on every call; None if there is none."""
    digest = blake2b(normalize_whitespace(text).encode(), digest_size=8, person=b"mismatch").digest()
    start = int.from_bytes(digest, "big") % len(signatures)
    return next((other for other in chain(signatures[start:], signatures[:start]) if other != own), None)
