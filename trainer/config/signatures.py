"""The parameters, rules and declared attributes of parts, read from their source without importing it.

Only modules of this package and of the working directory are read. Other packages may create their names during the
import, so their sources prove nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

from trainer.annotations import aliases, expand_aliases, fits_type, value_problems
from trainer.errors import did_you_mean
from trainer.rules import Rule

PACKAGE = Path(__file__).resolve().parents[1]
OWN = f"{PACKAGE.name}."

_Definition: TypeAlias = ast.ClassDef | ast.FunctionDef
_CONSTRAINTS = f"{OWN}constraints"
_DYNAMIC = ("globals(", "vars(", "setattr(")


@dataclass(frozen=True)
class Signature:
    """Parameters of a callable.

    Attributes:
        annotations: The text of the annotation of every parameter that can be passed by name, without aliases (`Any`
            without an annotation).
        required: The parameters without a default.
        open: The callable takes any other keyword (`**kwargs`).
        rules: The relations between parameters that `@validated` declares.
    """

    annotations: Mapping[str, str]
    required: frozenset[str]
    open: bool
    rules: tuple[Rule, ...] = ()

    def annotation(self, key: str) -> str | None:
        """Return the annotation of the YAML key `key`, or None if there is no such key.

        The key `x` of a parameter `x_steps` is a duration.
        """
        if key in self.annotations:
            return self.annotations[key]
        steps = self.annotations.get(f"{key}_steps")
        if steps is None:
            return "Any" if self.open else None
        duration = "Annotated[Duration, Gt(0)]" if value_problems(key, 0, steps) else "Duration"
        return f"{duration} | None" if fits_type(None, steps) else duration


def read(target: str) -> Signature | None:
    """Return the signature of a dotted `target`, or None if its source does not tell.

    Raises:
        LookupError: There is no such module or name; the message says so, with the nearest match.
    """
    located = _located(target)
    if located is None:
        return None
    module, names = located
    if not names:
        raise LookupError("names a module; a class or function in it is needed")
    try:
        definition = _definition(module, names)
    except _Unreadable:
        return None
    return _signature(*definition, bound=len(names) > 1)


def attribute(target: str, name: str) -> Any:
    """Return a literal that a dotted `target` declares; None if there is none to read.

    A class declares an attribute, itself or in a base; a function declares a constant of its module.
    """
    try:
        located = _located(target)
        if located is None:
            return None
        definition, module = _definition(*located)
    except (LookupError, _Unreadable):
        return None
    if isinstance(definition, ast.ClassDef):
        return _attribute(definition, module, name)
    values = (_assignment(item, name) for item in module.tree.body)
    return next((_literal(value) for value in values if value is not None), None)


def defines(target: str) -> bool:
    """Return whether a dotted target is a class or function that this package defines and does not only import."""
    if not target.startswith(OWN):
        return False
    try:
        located = _located(target)
    except LookupError:
        return False
    assert located is not None
    module, names = located
    scope: Iterable[ast.stmt] = module.tree.body
    for name in names:
        matches = [item for item in scope if isinstance(item, _Definition) and item.name == name]
        if not matches:
            return False
        scope = matches[-1].body
    return bool(names)


# Modules


class _Unreadable(Exception):  # noqa: N818  an answer, not an error
    """The source does not tell."""


@dataclass(frozen=True)
class _Module:
    """The source of a module. `name` is dotted; `package` is the name that relative imports start from."""

    name: str
    package: str
    path: Path

    @property
    def tree(self) -> ast.Module:
        return _tree(self.path)


@lru_cache(maxsize=128)
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _located(target: str) -> tuple[_Module, list[str]] | None:
    """Return the module of a target and the names to look up in it; None if its source cannot be read.

    Raises:
        LookupError: This package has no such module.
    """
    own = target.startswith(OWN)
    names = target.split(".")
    folder = PACKAGE.parent if own else Path.cwd()
    for position, name in enumerate(names):
        dotted, rest = ".".join(names[: position + 1]), names[position + 1 :]
        if (file := folder / f"{name}.py").is_file():
            return _Module(dotted, dotted.rpartition(".")[0], file), rest
        inner = folder / name
        if not (inner.is_dir() if own else (inner / "__init__.py").is_file()):
            return _in_package(folder, names[:position], names[position:], own=own)
        folder = inner
    if own:
        raise LookupError("names a package; a class or function in one of its modules is needed")
    return None


def _in_package(folder: Path, package: list[str], rest: list[str], *, own: bool) -> tuple[_Module, list[str]] | None:
    if own:
        modules = [item.stem for item in folder.iterdir() if item.stem.isidentifier()]
        near = did_you_mean(rest[0], [name for name in modules if not name.startswith("__")])
        raise LookupError(f"there is no module {rest[0]} in {'.'.join(package)}. {near}")
    dotted = ".".join(package)
    return (_Module(dotted, dotted, folder / "__init__.py"), rest) if package else None


def _definition(module: _Module, names: list[str]) -> tuple[_Definition, _Module]:
    """Return the definition of a name, in another module if it is imported from there.

    Raises:
        LookupError: The module has no such name.
        _Unreadable: The source does not show how the name is defined.
    """
    try:
        scope: list[ast.stmt] = module.tree.body
    except (SyntaxError, ValueError, OSError) as error:  # reported with the reason when the module is imported
        raise _Unreadable from error
    definition: _Definition | None = None
    where = module.name
    for name in names:
        definitions = {item.name: item for item in scope if isinstance(item, _Definition)}
        if name not in definitions:
            if definition is None and (source := _imported(module, name)):
                return _imported_definition(source)
            raise _missing(module, where, name, scope)
        where += f".{name}"
        definition = definitions[name]
        scope = definition.body
    if definition is None:
        raise _Unreadable
    return definition, module


def _imported_definition(source: str) -> tuple[_Definition, _Module]:
    located = _located(source)
    if located is None:
        raise _Unreadable
    return _definition(*located)


def _missing(module: _Module, where: str, name: str, scope: Iterable[ast.stmt]) -> Exception:
    bound = set(_bound_names(scope))
    known = sorted(each for each in bound if not each.startswith("_"))
    if not module.name.startswith(OWN):
        source = module.path.read_text(encoding="utf-8")
        is_package = module.path.name == "__init__.py"
        if is_package or name in bound or {"*", "__getattr__"} & bound or any(word in source for word in _DYNAMIC):
            return _Unreadable()
    else:
        known = [item.name for item in scope if isinstance(item, _Definition) and not item.name.startswith("_")]
    return LookupError(f"there is no {name} in {where}. {did_you_mean(name, known)}".rstrip())


def _bound_names(body: Iterable[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements bind, in blocks too."""
    for item in body:
        if isinstance(item, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield item.name
        elif isinstance(item, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in item.names)
        else:
            yield from (node.id for node in ast.walk(item) if isinstance(node, ast.Name))
            for node in ast.iter_child_nodes(item):
                if isinstance(node, ast.ExceptHandler):
                    yield from _bound_names(node.body)
                elif isinstance(node, ast.stmt):
                    yield from _bound_names([node])


def _imported(module: _Module, name: str) -> str | None:
    """Return the dotted name that a module imports as `name`."""
    for item in module.tree.body:
        for alias in item.names if isinstance(item, ast.ImportFrom) else ():
            if (alias.asname or alias.name) == name and isinstance(item, ast.ImportFrom):
                above = module.package.split(".")
                start = ".".join(above[: len(above) - item.level + 1]) if item.level else ""
                return ".".join(filter(None, [start, item.module, alias.name]))
    return None


def _assigned(module: _Module, name: str) -> tuple[ast.expr, _Module] | None:
    """Return the expression that a module, or the module that it imports the name from, assigns to a name."""
    for item in module.tree.body:
        if (value := _assignment(item, name)) is not None:
            return value, module
    source = _imported(module, name)
    try:
        located = _located(source) if source else None
        return _assigned(located[0], located[1][0]) if located is not None and len(located[1]) == 1 else None
    except (LookupError, SyntaxError, OSError):
        return None


def _assignment(item: ast.stmt, name: str) -> ast.expr | None:
    """Return the value that a statement assigns to `name`."""
    if isinstance(item, ast.AnnAssign):
        target: ast.expr = item.target
    elif isinstance(item, ast.Assign):
        target = item.targets[0]
    else:
        return None
    return item.value if isinstance(target, ast.Name) and target.id == name else None


# Signatures


def _signature(definition: _Definition, module: _Module, *, bound: bool) -> Signature | None:
    if isinstance(definition, ast.FunctionDef):
        return _function_signature(definition, module, bound=bound)
    if _is_dataclass(definition):
        return _dataclass_signature(definition, module)
    for item in definition.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _function_signature(item, module, bound=True)
    if not definition.bases:
        return Signature({}, frozenset(), open=False)
    base = _class_of(definition.bases[0], module)
    return None if base is None else _signature(*base, bound=True)


def _is_dataclass(definition: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list)


def _dataclass_signature(definition: ast.ClassDef, module: _Module) -> Signature | None:
    """Return the fields of a dataclass and its bases; None if a base cannot be read."""
    annotations: dict[str, str] = {}
    required: set[str] = set()
    rules: tuple[Rule, ...] = ()
    for base in reversed(definition.bases):
        parent = _class_of(base, module)
        is_fields = parent is not None and isinstance(parent[0], ast.ClassDef) and _is_dataclass(parent[0])
        inherited = _dataclass_signature(*parent) if parent is not None and is_fields else None  # type: ignore[arg-type]
        if inherited is None:
            return None
        annotations |= inherited.annotations
        required |= inherited.required
        rules += inherited.rules
    for item in definition.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = _annotation(item.annotation, module)
        if "ClassVar" in annotation:
            continue
        annotations[item.target.id] = annotation
        required.discard(item.target.id)
        if item.value is None:
            required.add(item.target.id)
    rules += tuple(_rules(definition, module))
    return Signature(annotations, frozenset(required), open=False, rules=rules)


def _class_of(base: ast.expr, module: _Module) -> tuple[_Definition, _Module] | None:
    """Return a base class and its module; None if it cannot be read."""
    try:
        return _definition(module, [base.id]) if isinstance(base, ast.Name) else None
    except (LookupError, _Unreadable):
        return None


def _function_signature(definition: ast.FunctionDef, module: _Module, *, bound: bool) -> Signature:
    parameters = definition.args
    positional = [*parameters.posonlyargs, *parameters.args]
    optional = {argument.arg for argument in positional[len(positional) - len(parameters.defaults) :]}
    keywords = zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True)
    optional |= {name.arg for name, value in keywords if value is not None}
    named = [*parameters.args[1 if bound and not parameters.posonlyargs else 0 :], *parameters.kwonlyargs]
    annotations = {item.arg: _annotation(item.annotation, module) for item in named}
    is_open = parameters.kwarg is not None
    rules = tuple(_rules(definition, module))
    return Signature(annotations, frozenset(annotations) - optional, open=is_open, rules=rules)


def _annotation(node: ast.expr | None, module: _Module) -> str:
    return "Any" if node is None else _expanded(ast.unparse(node), module, ())


def _expanded(text: str, module: _Module, above: tuple[str, ...]) -> str:
    """Return an annotation without the aliases of its module; `above` are those that are being expanded."""

    def resolve(name: str) -> str | None:
        source = _imported(module, name) or ""
        if source.startswith(f"{_CONSTRAINTS}."):
            return aliases().get(source.removeprefix(f"{_CONSTRAINTS}."))
        assigned = _assigned(module, name) if name not in above else None
        if assigned is None or isinstance(assigned[0], ast.Call):
            return None
        return _expanded(ast.unparse(assigned[0]), assigned[1], (*above, name))

    return expand_aliases(text, resolve)


def _rules(definition: _Definition, module: _Module) -> Iterator[Rule]:
    """Yield the rules that `@validated(...)` declares."""
    for decorator in definition.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).rpartition(".")[2] == "validated":
            for argument in decorator.args:
                yield from _declared_rules(argument, module)


def _declared_rules(node: ast.expr, module: _Module) -> Iterator[Rule]:
    if isinstance(node, ast.Starred):
        yield from _declared_rules(node.value, module)
    elif isinstance(node, ast.List | ast.Tuple):
        for item in node.elts:
            yield from _declared_rules(item, module)
    elif isinstance(node, ast.Name) and (assigned := _assigned(module, node.id)):
        yield from _declared_rules(*assigned)
    elif isinstance(node, ast.Call):
        try:
            positional = [ast.literal_eval(argument) for argument in node.args]
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            yield Rule(*positional, **named)
        except (ValueError, TypeError):  # not written as literals: enforced when the part is made
            return


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _attribute(definition: ast.ClassDef, module: _Module, name: str) -> Any:
    for item in definition.body:
        if (value := _assignment(item, name)) is not None:
            return _literal(value)
    for base in definition.bases:
        parent = _class_of(base, module)
        if parent is not None and isinstance(parent[0], ast.ClassDef):
            value = _attribute(*parent, name)  # type: ignore[arg-type]
            if value is not None:
                return value
    return None
