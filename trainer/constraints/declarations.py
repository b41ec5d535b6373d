"""The names and annotations of a module, read from its source.

A name stands for an object only if the module imports it from one of `_MODULES`, or if it is a built-in type.
"""

from __future__ import annotations

import ast
import inspect
import operator
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import ModuleType, SimpleNamespace
from typing import Annotated, Any, Final, Literal, TypeAlias, get_type_hints

from trainer.constraints.annotations import METADATA
from trainer.constraints.rules import evaluate

_MODULES: Final = (
    "typing",
    "typing_extensions",
    "collections.abc",
    "annotated_types",
    "dataclasses",
    "trainer.constraints.annotations",
    "trainer.constraints",
    "trainer.constraints.rules",
)
"""Modules whose names have a meaning in the source of an annotation."""
_BUILTINS: Final[dict[str, object]] = {each.__name__: each for each in (int, float, bool, str, list, tuple, dict)}

Binding: TypeAlias = ast.ClassDef | ast.FunctionDef | ast.expr | str | None
"""The binding of a name of a module: a definition, the value of an assignment, the dotted name of an import, or None
for anything else."""


@dataclass(frozen=True)
class _Package:
    """The beginning of the dotted name of a module."""

    dotted: str


def bindings(body: Iterable[ast.stmt], package: str) -> dict[str, Binding]:
    """Return the names that statements bind, in blocks too.

    Args:
        body: The statements of a module or class.
        package: The dotted name that relative imports start from.
    """
    names: dict[str, Binding] = {}
    for item in body:
        match item:
            case ast.ClassDef() | ast.FunctionDef():
                names[item.name] = item
            case ast.AsyncFunctionDef():
                names[item.name] = None
            case ast.Import():
                for alias in item.names:
                    top = alias.name.partition(".")[0]
                    names[alias.asname or top] = alias.name if alias.asname else top
            case ast.ImportFrom():
                above = package.split(".")
                start = ".".join(above[: len(above) - item.level + 1]) if item.level else ""
                for alias in item.names:
                    names[alias.asname or alias.name] = ".".join(filter(None, [start, item.module, alias.name]))
            case ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]):
                names |= {name: item.value} if item.value is not None else {}
            case _:
                stored = (node for node in ast.walk(item) if isinstance(node, ast.Name))
                names |= {node.id: None for node in stored if isinstance(node.ctx, ast.Store)}
                for block in _blocks(item):
                    names |= bindings(block, package)
    return names


def _blocks(item: ast.stmt) -> list[list[ast.stmt]]:
    """Return the blocks of a statement; the one that runs if all goes well comes last."""
    inner = [*getattr(item, "handlers", []), *getattr(item, "cases", [])]
    return [each.body for each in inner] + [getattr(item, name, []) for name in ("orelse", "finalbody", "body")]


def meaning(binding: Binding) -> object:
    """Return the object that an import binds if it comes from one of `_MODULES`; Any for anything else."""
    if not isinstance(binding, str):
        return Any
    module, _, name = binding.rpartition(".")
    if module in _MODULES:
        return getattr(import_module(module), name, Any)
    is_package = any(f"{each}.".startswith(f"{binding}.") for each in _MODULES)
    return _Package(binding) if is_package else Any


def read_annotation(node: ast.expr, find: Callable[[str], object]) -> object:
    """Return the annotation in a source; Any stands for what cannot be read.

    Args:
        node: The expression of the annotation.
        find: Returns the object that a name of the module means; Any if it is unknown.
    """
    try:
        return _read(node, find)
    except (TypeError, ValueError, LookupError, ArithmeticError, SyntaxError):
        return Any


def _read(node: ast.expr, find: Callable[[str], object]) -> Any:
    match node:
        case ast.Constant(value=str(text)):
            return read_annotation(ast.parse(text.strip(), mode="eval").body, find)
        case ast.Constant():
            return node.value
        case ast.Name():
            return find(node.id)
        case ast.Attribute():
            package = read_annotation(node.value, find)
            return meaning(f"{package.dotted}.{node.attr}") if isinstance(package, _Package) else Any
        case ast.BinOp(op=ast.BitOr()):
            return operator.or_(read_annotation(node.left, find), read_annotation(node.right, find))
        case ast.BinOp() | ast.UnaryOp():
            return _read_value(node, find)
        case ast.Subscript():
            return _read_subscript(read_annotation(node.value, find), node.slice, find)
        case ast.Call():
            make: Any = read_annotation(node.func, find)
            named = {str(keyword.arg): _read_value(keyword.value, find) for keyword in node.keywords}
            return make(*(_read_value(item, find) for item in node.args), **named) if make in METADATA else Any
    return Any


def _read_subscript(generic: Any, index: ast.expr, find: Callable[[str], object]) -> Any:
    items = index.elts if isinstance(index, ast.Tuple) else [index]
    if generic is Literal:
        return generic[tuple(ast.literal_eval(item) for item in items)]
    values = tuple(read_annotation(item, find) for item in items)
    if generic is Annotated:
        metadata = [item for item in values[1:] if isinstance(item, METADATA)]
        return generic[(values[0], *metadata)] if metadata else values[0]
    return generic[values if isinstance(index, ast.Tuple) else values[0]]


def _read_value(node: ast.expr, find: Callable[[str], object]) -> object:
    names = {inner.id: find(inner.id) for inner in ast.walk(node) if isinstance(inner, ast.Name)}
    return evaluate(node, names)


def find_builtin(name: str) -> object:
    """Return the object of a built-in name that annotations use; Any for any other name."""
    return _BUILTINS.get(name, Any)


def resolve_annotation(annotation: object, scope: Mapping[str, object]) -> object:
    """Return the object of an annotation, with its strings evaluated; `scope` holds the globals of its module."""
    if annotation is inspect.Parameter.empty:
        return Any
    with suppress(Exception):  # such as a name that is imported only for the type checker
        holder = SimpleNamespace(__annotations__={"value": annotation})
        return get_type_hints(holder, dict(scope), include_extras=True)["value"]
    if not isinstance(annotation, str):
        return annotation
    imports = _bindings_of(str(scope.get("__name__")))

    def find(name: str) -> object:
        if name not in scope:
            return meaning(imports[name]) if name in imports else find_builtin(name)
        value = scope[name]
        return _Package(value.__name__) if isinstance(value, ModuleType) else resolve_annotation(value, scope)

    return read_annotation(ast.Constant(annotation), find)


@lru_cache(maxsize=64)
def _bindings_of(name: str) -> dict[str, Binding]:
    """Return the names that an imported module binds; empty if it has no source."""
    with suppress(OSError, TypeError, SyntaxError, KeyError):
        module = sys.modules[name]
        return bindings(ast.parse(inspect.getsource(module)).body, str(module.__package__))
    return {}
