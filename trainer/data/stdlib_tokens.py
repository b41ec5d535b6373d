"""Words of docstrings of the running interpreter's standard library; tags mark parameters, classes and modules."""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections.abc import Collection, Iterator

from trainer.data.splits import Sample
from trainer.data.stdlib import (
    Function,
    StdlibSource,
    docstrings,
    library_root,
    module_name,
    parameter_names,
    source_paths,
)

_VERSION = 1
"""Increase it if the same sources give different samples."""

_WORD = re.compile(r"\w+|[^\w\s]")
NAME = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_CLASS_DEFINITION = re.compile(rb"^\s*class ([A-Z]\w*)\b", re.MULTILINE)
_CAMEL_CASE = re.compile(r"(?=.*[a-z])(?=(?:.*[A-Z]){2})")
_CLASS_CONTEXT = re.compile(r"\s+(?:objects?|instances?|class(?:es)?|subclass(?:es)?)\b")
_BEFORE_MODULE = re.compile(r"\b(?:module|package)\s+[`'\"]*$")
_AFTER_MODULE = re.compile(r"[`'\"]*\s+(?:module|package)\b")


class StdlibTokens(StdlibSource):
    """Columns `words` and `tags` of the docstrings of `data=stdlib_docs`, and `row`.

    A word is a run of letters, digits and underscores, or another character. Tags are in BIO form, for three types of
    names:

    * `parameter`: a parameter of the documented function or class;
    * `class`: a class of the library, or a built-in exception or type, including a module in front of it; a name
      without inner capitals counts only before a word such as "object" or "class";
    * `module`: a module of the library, before a dot or next to the word "module" or "package".

    The tags come from the sources, which the words by themselves do not reveal. The splits are the splits of
    `data=stdlib_docs`.
    """

    def __init__(self) -> None:
        super().__init__("stdlib_tokens", ("words", "tags"), _read_samples, "tokens", _VERSION)


def tag_words(
    text: str, parameters: Collection[str], classes: Collection[str], modules: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return the words of a docstring and their tags."""
    entities: dict[int, tuple[int, str]] = {}
    for name in NAME.finditer(text):
        if entity := find_entity(name, parameters, classes, modules):
            entity_type, length = entity
            entities[name.start()] = (name.start() + length, entity_type)
    words, tags = [], []
    end, entity_type = 0, ""
    for word in _WORD.finditer(text):
        words.append(word[0])
        begins = word.start() in entities
        if begins:
            end, entity_type = entities[word.start()]
        tags.append(f"B-{entity_type}" if begins else f"I-{entity_type}" if word.start() < end else "O")
    return words, tags


def find_entity(
    match: re.Match[str], parameters: Collection[str], classes: Collection[str], modules: Collection[str]
) -> tuple[str, int] | None:
    """Return the type of the entity at the start of a (dotted) name and its length in characters; None without one."""
    name, parts = match[0], match[0].split(".")
    before, after = match.string[: match.start()], match.string[match.end() :]
    if len(parts) == 1:
        if name in parameters:
            return "parameter", len(name)
        if name in classes and (_CAMEL_CASE.match(name) or _CLASS_CONTEXT.match(after)):
            return "class", len(name)
        near_module = _AFTER_MODULE.match(after) or _BEFORE_MODULE.search(before[-20:])
        return ("module", len(name)) if name in modules and near_module else None
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in modules:
            if parts[count : count + 1] and parts[count] in classes:
                return "class", len(prefix) + 1 + len(parts[count])
            return "module", len(prefix)
    if parts[0] in classes:
        return "class", len(parts[0])
    return ("parameter", len(parts[0])) if parts[0] in parameters else None


def documented_parameters(node: ast.AST) -> set[str]:
    """Return the parameters of a function, or of a class's `__init__`; without `self`, `cls` and the word "a"."""
    if isinstance(node, ast.ClassDef):
        methods = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
        return documented_parameters(methods[0]) if methods else set()
    return set(parameter_names(node)) - {"self", "cls", "a"} if isinstance(node, Function) else set()


def library_names() -> tuple[set[str], set[str]]:
    """Return the names of the classes and of the modules of the library."""
    paths = source_paths()
    modules = {module_name(path) for path in paths} | set(sys.stdlib_module_names) - {"this"}
    classes = {name for name, item in vars(builtins).items() if isinstance(item, type) and name[0].isupper()}
    for path in paths:
        classes.update(name.decode() for name in _CLASS_DEFINITION.findall((library_root() / path).read_bytes()))
    return classes, modules


def _read_samples() -> Iterator[Sample]:
    classes, modules = library_names()
    for docstring in docstrings():
        parameters = documented_parameters(docstring.documented.node)
        words, tags = tag_words(docstring.text, parameters, classes, modules)
        yield Sample(docstring.row, {"words": words, "tags": tags}, docstring.text)
