"""Parts of the user in the working directory: whether a name is there, read from the source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from pathlib import Path

from trainer.errors import did_you_mean


def own_part_fault(target: str) -> tuple[str, str] | None:
    """What is wrong with a dotted target and the remedy; None where nothing is, or the source does not tell.

    Only what lies in the working directory is read: packages elsewhere may make their names while they are imported.
    """
    folder = Path.cwd()
    names = target.split(".")
    for position, name in enumerate(names[:-1]):
        if (file := folder / f"{name}.py").is_file():
            return _missing(file, ".".join(names[: position + 1]), names[position + 1])
        if not (folder / name / "__init__.py").is_file():
            return None
        folder = folder / name
    return None


def _missing(file: Path, module: str, name: str) -> tuple[str, str] | None:
    """The same of a name in a module."""
    try:
        source = file.read_text(encoding="utf-8")
        known = list(_names(ast.parse(source).body))
    except (SyntaxError, ValueError, OSError):  # told with the reason when it is imported
        return None
    dynamic = {"*", "__getattr__"} & {*known} or any(word in source for word in ("globals(", "vars(", "setattr("))
    if dynamic or name in known:
        return None
    return f"there is no {name} in {module}", did_you_mean(name, [each for each in known if not each.startswith("_")])


def _names(body: Iterable[ast.stmt]) -> Iterator[str]:
    """The names that statements bind, in blocks too."""
    for item in body:
        if isinstance(item, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield item.name
        elif isinstance(item, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in item.names)
        else:
            yield from (node.id for node in ast.walk(item) if isinstance(node, ast.Name))
            inner = (node for node in ast.iter_child_nodes(item) if isinstance(node, ast.stmt | ast.ExceptHandler))
            for node in inner:
                yield from _names(node.body if isinstance(node, ast.ExceptHandler) else [node])
