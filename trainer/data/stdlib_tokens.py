"""Words of the running interpreter's standard library, with the parameters, classes and modules that they name."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from trainer.data import stdlib
from trainer.data.splits import Sample

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when the same sources give something else."""

_WORD = re.compile(r"\w+|[^\w\s]")
_NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_CLASS = re.compile(rb"^\s*class ([A-Z]\w*)\b", re.MULTILINE)
_CAMEL = re.compile(r"(?=.*[a-z])(?=(?:.*[A-Z]){2})")
_OF_CLASS = re.compile(r"\s+(?:objects?|instances?|class(?:es)?|subclass(?:es)?)\b")
_BEFORE_MODULE = re.compile(r"\b(?:module|package)\s+[`'\"]*$")
_AFTER_MODULE = re.compile(r"[`'\"]*\s+(?:module|package)\b")


class StdlibTokens:
    """Columns `words` and `tags` of the docstrings of `data=stdlib_docs`, and `row`.

    A word is a run of letters, digits and underscores, or another sign. Tags are in BIO form, for three kinds of names:

    * `parameter`: a parameter of the function, or of the class, that is documented;
    * `class`: one that the library defines, or an exception or type built in, with the module before it where there
      is one; a name without inner capitals counts only before a word such as "object" or "class";
    * `module`: one of the library, before a dot or beside the word "module" or "package".

    They are found in the sources, which the words alone do not show. Splits are those of `data=stdlib_docs`.
    """

    @cached_property
    def fingerprint(self) -> str:
        """Of the interpreter's version and the names and sizes of the sources; nothing is parsed."""
        return stdlib.fingerprint_of("tokens", _VERSION)

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits; a few seconds of parsing.

        Raises:
            DataError: The interpreter was installed without the sources of its library.
        """
        return stdlib.splits(["words", "tags"], _samples())

    def where(self, split: str, row: int) -> str:
        """`json/decoder.py, line 53`."""
        return stdlib.where(row)

    def column(self, role: str) -> str:
        """`the column tags of data=stdlib_tokens`: its columns have no names of the user's."""
        return stdlib.column(role, "stdlib_tokens")


def tagged(
    text: str, parameters: Collection[str], classes: Collection[str], modules: Collection[str]
) -> tuple[list[str], list[str]]:
    """The words of a docstring and their tags."""
    starts: dict[int, tuple[int, str]] = {}
    for name in _NAME.finditer(text):
        if entity := _entity(name, parameters, classes, modules):
            kind, length = entity
            starts[name.start()] = (name.start() + length, kind)
    words, tags = [], []
    end, kind = 0, ""
    for word in _WORD.finditer(text):
        words.append(word[0])
        begins = word.start() in starts
        if begins:
            end, kind = starts[word.start()]
        tags.append(f"B-{kind}" if begins else f"I-{kind}" if word.start() < end else "O")
    return words, tags


def _entity(
    found: re.Match[str], parameters: Collection[str], classes: Collection[str], modules: Collection[str]
) -> tuple[str, int] | None:
    """What a name or dotted name begins with, and how many characters of it that is."""
    name, parts = found[0], found[0].split(".")
    before, after = found.string[: found.start()], found.string[found.end() :]
    if len(parts) == 1:
        if name in parameters:
            return "parameter", len(name)
        if name in classes and (_CAMEL.match(name) or _OF_CLASS.match(after)):
            return "class", len(name)
        near = _AFTER_MODULE.match(after) or _BEFORE_MODULE.search(before[-20:])
        return ("module", len(name)) if name in modules and near else None
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in modules:
            if parts[count : count + 1] and parts[count] in classes:
                return "class", len(prefix) + 1 + len(parts[count])
            return "module", len(prefix)
    if parts[0] in classes:
        return "class", len(parts[0])
    return ("parameter", len(parts[0])) if parts[0] in parameters else None


def parameters_of(node: ast.AST) -> set[str]:
    """The parameters of a function, or of a class's `__init__`; without `self`, `cls` and the word "a"."""
    if isinstance(node, ast.ClassDef):
        found = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return parameters_of(found[0]) if found else set()
    if not isinstance(node, stdlib.Function):
        return set()
    given = node.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs]
    named += [extra for extra in (given.vararg, given.kwarg) if extra is not None]
    return {item.arg for item in named} - {"self", "cls", "a"}


def _samples() -> Iterator[Sample]:
    paths = stdlib.paths()
    modules = {stdlib.module_of(path) for path in paths} | set(sys.stdlib_module_names) - {"this"}
    classes = {name for name, found in vars(builtins).items() if isinstance(found, type) and name[0].isupper()}
    for path in paths:
        classes.update(name.decode() for name in _CLASS.findall((stdlib.root() / path).read_bytes()))
    for docstring in stdlib.docstrings():
        words, tags = tagged(docstring.text, parameters_of(docstring.found.node), classes, modules)
        yield Sample(docstring.row, {"words": words, "tags": tags}, docstring.text)
