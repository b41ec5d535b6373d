"""Docstrings of the running interpreter's standard library, by topic: real text everywhere, without a download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from trainer.data import stdlib
from trainer.data.splits import Sample

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when the same sources give something else."""


class StdlibDocs:
    """Columns `text` (a docstring), `label` (one of 15 topics), `name`, `kind`, `row` and, if asked for, `labels`.

    Docstrings have at least 4 words and are distinct; tests of the library are not among them. Each topic is a group
    of chapters of the Library Reference. The `labels` are the topic, the kind of object (`module`, `class`, `function`
    or `method`), and `private` where a part of its name begins with one underscore, else `public`. Splits of 80, 10
    and 10 % follow from the text alone.
    """

    @cached_property
    def fingerprint(self) -> str:
        """Of the interpreter's version and the names and sizes of the sources; nothing is parsed."""
        return stdlib.fingerprint_of(_VERSION)

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits; a few seconds of parsing.

        Raises:
            DataError: The interpreter was installed without the sources of its library.
        """
        names = ["text", "label", *(["labels"] if "labels" in roles else []), "name", "kind"]
        return stdlib.splits(names, _samples())

    def where(self, split: str, row: int) -> str:
        """`json/decoder.py, line 53`."""
        return stdlib.where(row)

    def column(self, role: str) -> str:
        """`the column label of data=stdlib_docs`: its columns have no names of the user's."""
        return stdlib.column(role, "stdlib_docs")


def _samples() -> Iterator[Sample]:
    for docstring in stdlib.docstrings():
        found = docstring.found
        values = {"text": docstring.text, "label": docstring.topic, "name": docstring.name, "kind": found.kind}
        kind = "method" if found.method else found.kind
        access = "private" if any(map(_private, docstring.name.split("."))) else "public"
        yield Sample(docstring.row, {**values, "labels": [docstring.topic, kind, access]}, docstring.text)


def _private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))
