"""Docstrings of the running interpreter's standard library by topic: real text on every machine, no download."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trainer.data.splits import Sample
from trainer.data.stdlib import StdlibSource, docstrings

_VERSION = 1
"""Increase it if the same sources give different samples."""


class StdlibDocs(StdlibSource):
    """Columns `text` (a docstring), `label` (one of 15 topics), `name`, `kind`, `row` and, if requested, `labels`.

    Docstrings have at least 4 words and are distinct; tests of the library are left out. Each topic is a group of
    chapters of the Library Reference. The `labels` are the topic, the type of the object (`module`, `class`, `function`
    or `method`), and `private` if a part of its name starts with one underscore, else `public`. Splits of 80, 10 and
    10% depend on the text only.
    """

    def __init__(self) -> None:
        super().__init__("stdlib_docs", ("text", "label", "name", "kind"), _read_samples, _VERSION)

    def _columns_for(self, roles: Sequence[str]) -> Sequence[str]:
        return ["text", "label", *(["labels"] if "labels" in roles else []), "name", "kind"]


def _read_samples() -> Iterator[Sample]:
    for docstring in docstrings():
        item = docstring.documented
        object_type = "method" if item.is_method else item.object_type
        access = "private" if any(map(_is_private, docstring.name.split("."))) else "public"
        values = {
            "text": docstring.text,
            "label": docstring.topic,
            "name": docstring.name,
            "kind": item.object_type,
            "labels": [docstring.topic, object_type, access],
        }
        yield Sample(docstring.row, values, docstring.text)


def _is_private(name: str) -> bool:
    return name.startswith("_") and not (name.startswith("__") and name.endswith("__"))
