"""The parameters of what a `_target_` under `trainer.` names, read from its source without importing it."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from trainer.errors import did_you_mean

PACKAGE = Path(__file__).resolve().parents[1]

_Definition = ast.ClassDef | ast.FunctionDef


@dataclass(frozen=True)
class Signature:
    """Parameters of a callable.

    Attributes:
        annotations: Every parameter that can be given by name, with its annotation's text (`Any` without one).
        required: Those without a default.
        open: Whether it takes any other keyword (`**kwargs`).
    """

    annotations: Mapping[str, str]
    required: frozenset[str]
    open: bool

    def annotation(self, key: str) -> str | None:
        """The annotation that the YAML key `key` is held to, or None where there is no such key.

        The key `x` of a parameter `x_steps` is a duration.
        """
        if key in self.annotations:
            return self.annotations[key]
        steps = self.annotations.get(f"{key}_steps")
        if steps is not None:
            return "Duration | None" if "None" in steps else "Duration"
        return "Any" if self.open else None


def read(target: str, package: Path = PACKAGE) -> Signature | None:
    """The signature of a dotted `target` below `package`, or None where its source alone does not tell.

    Raises:
        LookupError: There is no such module or name; the message says so, with the nearest match.
    """
    path, names = _module(target, package)
    return _of_name(_tree(path), names, target, package)


def attribute(target: str, name: str, package: Path = PACKAGE) -> Any:
    """The literal value of a class attribute of a dotted `target` below `package`; None where there is none to read."""
    if not target.startswith(f"{package.name}."):
        return None
    try:
        path, names = _module(target, package)
    except LookupError:
        return None
    classes = {item.name: item for item in _tree(path).body if isinstance(item, ast.ClassDef)}
    while names and names[-1] in classes:
        found = classes[names[-1]]
        for item in found.body:
            value = _assigned(item, name)
            if value is not None:
                return value
        names = [base.id for base in found.bases if isinstance(base, ast.Name)][:1]
    if names and (source := _imported(_tree(path), names[-1])):
        return attribute(source, name, package)
    return None


def _assigned(item: ast.stmt, name: str) -> Any:
    """The literal that a statement gives the attribute `name`."""
    target = (
        item.target if isinstance(item, ast.AnnAssign) else item.targets[0] if isinstance(item, ast.Assign) else None
    )
    if not isinstance(target, ast.Name) or target.id != name:
        return None
    assert isinstance(item, ast.AnnAssign | ast.Assign)
    try:
        return None if item.value is None else ast.literal_eval(item.value)
    except ValueError:
        return None


def defines(target: str, package: Path = PACKAGE) -> bool:
    """Whether a dotted target is a class or function that `package` itself defines, not one that it imports."""
    if not target.startswith(f"{package.name}."):
        return False
    try:
        path, names = _module(target, package)
    except LookupError:
        return False
    scope: Iterable[ast.stmt] = _tree(path).body
    for name in names:
        found = [item for item in scope if isinstance(item, _Definition) and item.name == name]
        if not found:
            return False
        scope = found[-1].body
    return bool(names)


def _module(target: str, package: Path) -> tuple[Path, list[str]]:
    """The source file of a target, and the names to look up in it."""
    _, *parts = target.split(".")
    folder = package
    for position, part in enumerate(parts):
        if (folder / f"{part}.py").is_file():
            return folder / f"{part}.py", parts[position + 1 :]
        if not (folder / part).is_dir():
            modules = [item.stem for item in folder.iterdir() if item.stem.isidentifier()]
            near = did_you_mean(part, [name for name in modules if not name.startswith("__")])
            raise LookupError(f"there is no module {part} in {'.'.join([package.name, *parts[:position]])}. {near}")
        folder = folder / part
    raise LookupError("names a package; a class or function in one of its modules is needed")


@lru_cache(maxsize=128)
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def _of_name(module: ast.Module, names: list[str], target: str, package: Path) -> Signature | None:
    scope: Iterable[ast.stmt] = module.body
    found: _Definition | None = None
    for name in names:
        definitions = {item.name: item for item in scope if isinstance(item, _Definition)}
        if name not in definitions:
            if found is None and (source := _imported(module, name)):
                return read(source, package) if source.startswith(f"{package.name}.") else None
            public = [known for known in definitions if not known.startswith("_")]
            raise LookupError(
                f"there is no {name} in {target.rsplit('.', 1)[0]}. {did_you_mean(name, public)}".rstrip()
            )
        found = definitions[name]
        scope = found.body
    if found is None:
        raise LookupError("names a module; a class or function in it is needed")
    if isinstance(found, ast.ClassDef):
        return _of_class(found, module, package)
    return _of_function(found, bound=len(names) > 1)


def _imported(module: ast.Module, name: str) -> str | None:
    for item in module.body:
        for alias in item.names if isinstance(item, ast.ImportFrom) and item.level == 0 else ():
            if (alias.asname or alias.name) == name and isinstance(item, ast.ImportFrom):
                return f"{item.module}.{alias.name}"
    return None


def _of_class(definition: ast.ClassDef, module: ast.Module, package: Path) -> Signature | None:
    if _is_dataclass(definition):
        return _of_fields(definition, module, package)
    for item in definition.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_function(item, bound=True)
    if not definition.bases:
        return Signature({}, frozenset(), open=False)
    classes = {item.name: item for item in module.body if isinstance(item, ast.ClassDef)}
    first = definition.bases[0]
    if isinstance(first, ast.Name) and first.id in classes:
        return _of_class(classes[first.id], module, package)
    return None


def _is_dataclass(definition: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in definition.decorator_list)


def _of_fields(definition: ast.ClassDef, module: ast.Module, package: Path) -> Signature | None:
    """The fields of a dataclass and of those it inherits from; None where one of these is none of the package's."""
    annotations: dict[str, str] = {}
    required: set[str] = set()
    for base in reversed(definition.bases):
        found = _class_of(base, module, package)
        inherited = _of_fields(*found, package) if found is not None and _is_dataclass(found[0]) else None
        if inherited is None:
            return None
        annotations |= inherited.annotations
        required |= inherited.required
    for item in definition.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = ast.unparse(item.annotation)
        if "ClassVar" in annotation:
            continue
        annotations[item.target.id] = annotation
        required.discard(item.target.id)
        if item.value is None:
            required.add(item.target.id)
    return Signature(annotations, frozenset(required), open=False)


def _class_of(base: ast.expr, module: ast.Module, package: Path) -> tuple[ast.ClassDef, ast.Module] | None:
    """A base class and the module it stands in, here or imported from elsewhere in the package."""
    name = base.id if isinstance(base, ast.Name) else ""
    for item in module.body:
        if isinstance(item, ast.ClassDef) and item.name == name:
            return item, module
    source = _imported(module, name) or ""
    if not source.startswith(f"{package.name}."):
        return None
    path, names = _module(source, package)
    return _class_of(ast.Name(names[-1]), _tree(path), package)


def _of_function(definition: ast.FunctionDef, *, bound: bool) -> Signature:
    given = definition.args
    positional = [*given.posonlyargs, *given.args]
    optional = {argument.arg for argument in positional[len(positional) - len(given.defaults) :]}
    optional |= {name.arg for name, value in zip(given.kwonlyargs, given.kw_defaults, strict=True) if value is not None}
    named = [*given.args[1 if bound and not given.posonlyargs else 0 :], *given.kwonlyargs]
    annotations = {item.arg: ast.unparse(item.annotation) if item.annotation else "Any" for item in named}
    return Signature(annotations, frozenset(annotations) - optional, open=given.kwarg is not None)
