"""The definition of a dotted name, found in the sources of its package without importing it.

Modules of this package and of the working directory are read, and of an installed package if the caller asks for it.
Such a package may create names during the import, so its source does not prove that a name is missing.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from trainer.config.groups import OWN, PACKAGE, is_local
from trainer.constraints.declarations import Binding, bindings, find_builtin, meaning, read_annotation
from trainer.errors import did_you_mean

Definition: TypeAlias = ast.ClassDef | ast.FunctionDef
_DYNAMIC = ("globals(", "vars(", "setattr(")


class Unreadable(Exception):  # noqa: N818  an answer, not an error
    """The source does not tell."""


@dataclass(frozen=True)
class Module:
    """The source of a module. `name` is dotted; `package` is the name that relative imports start from."""

    name: str
    package: str
    path: Path

    @property
    def names(self) -> Mapping[str, Binding]:
        """The names that the module binds."""
        return _names(self.path, self.package)


@lru_cache(maxsize=128)
def _names(path: Path, package: str) -> dict[str, Binding]:
    return bindings(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body, package)


def package_of(dotted: str) -> str:
    """Return the name of the package that contains a dotted name."""
    return dotted.partition(".")[0]


def locate(target: str, reader: str = "") -> tuple[Module, list[str]] | None:
    """Return the module of a target and the names to look up in it; None if its source cannot be read.

    Args:
        target: The dotted name.
        reader: An installed package that may be read as well.

    Raises:
        LookupError: This package, or a folder of the user's without `__init__.py`, has no such module.
    """
    own = target.startswith(OWN)
    names = target.split(".")
    if not all(name.isidentifier() for name in names):
        raise LookupError("is not the dotted name of a class or function")
    local = not own and is_local(names[0])
    folder = (
        PACKAGE.parent if own else Path.cwd() if local else _installed_folder(names[0]) if names[0] == reader else None
    )
    if folder is None:
        return None
    for position, name in enumerate(names):
        dotted, rest = ".".join(names[: position + 1]), names[position + 1 :]
        inner, file = folder / name, folder / f"{name}.py"
        is_package = (inner / "__init__.py").is_file()  # Python takes it before a module of the same name
        if file.is_file() and not is_package:
            return Module(dotted, dotted.rpartition(".")[0], file), rest
        if not (is_package or ((own or local) and inner.is_dir())):
            return _in_package(folder, names[:position], names[position:], own=own)
        folder = inner
    if own:
        raise LookupError("names a package; a class or function in one of its modules is needed")
    return None


def _installed_folder(package: str) -> Path | None:
    """Return the folder that contains an installed package or module; None if it has no source."""
    spec = find_spec(package)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    return Path(spec.origin).parents[1 if spec.submodule_search_locations else 0]


def _in_package(folder: Path, package: list[str], rest: list[str], *, own: bool) -> tuple[Module, list[str]] | None:
    """Return the `__init__` of a package, which may define the next name; `locate` says what it returns and raises."""
    dotted = ".".join(package)
    module = Module(dotted, dotted, folder / "__init__.py")
    if not package and not own:
        return None
    if not module.path.is_file() or (own and rest[0] not in module.names):
        modules = [item.stem for item in folder.iterdir() if item.stem.isidentifier()]
        near = did_you_mean(rest[0], [name for name in modules if not name.startswith("__")])
        raise LookupError(f"there is no module {rest[0]} in {dotted}. {near}")
    return module, rest


def find_definition(module: Module, names: list[str]) -> tuple[Definition, Module]:
    """Return the definition of a name, in another module if it is imported from there.

    Raises:
        LookupError: The module has no such name.
        Unreadable: The source does not show how the name is defined.
    """
    try:
        scope = module.names
    except (SyntaxError, ValueError, OSError) as error:  # reported with the reason when the module is imported
        raise Unreadable from error
    definition: Definition | None = None
    where = module.name
    for position, name in enumerate(names):
        binding = scope.get(name)
        if isinstance(binding, str) and definition is None:
            located = locate(".".join([binding, *names[position + 1 :]]), package_of(module.name))
            if located is None:
                raise Unreadable
            return find_definition(*located)
        if not isinstance(binding, Definition):
            raise _missing(module, where, name, scope)
        where += f".{name}"
        definition, scope = binding, bindings(binding.body, module.package)
    if definition is None:
        raise Unreadable
    return definition, module


def _missing(module: Module, where: str, name: str, scope: Mapping[str, Binding]) -> Exception:
    known = sorted(each for each in scope if not each.startswith("_"))
    if not module.name.startswith(OWN):
        source = module.path.read_text(encoding="utf-8")
        is_package = module.path.name == "__init__.py"
        if is_package or name in scope or {"*", "__getattr__"} & {*scope} or any(word in source for word in _DYNAMIC):
            return Unreadable()
    else:
        known = [each for each in known if isinstance(scope[each], Definition)]
    return LookupError(f"there is no {name} in {where}. {did_you_mean(name, known)}".rstrip())


def is_subclass(target: str, base: str) -> bool:
    """Return whether the sources of two dotted names show that the first is a class derived from the second."""
    try:
        located, above = locate(target, package_of(target)), locate(base)
        if located is None or above is None:
            return False
        definition, module = find_definition(*located)
        base_definition, _ = find_definition(*above)
    except (LookupError, Unreadable):
        return False
    classes = [(definition, module)] if isinstance(definition, ast.ClassDef) else []
    seen: list[ast.ClassDef] = []
    while classes:
        each, module = classes.pop()
        if each is base_definition:
            return True
        if each not in seen:
            seen.append(each)
            classes += filter(None, (find_class(item, module) for item in each.bases))
    return False


def find_class(base: ast.expr, module: Module) -> tuple[ast.ClassDef, Module] | None:
    """Return a base class and its module; None if it cannot be read."""
    binding, where = follow(base.id, module) if isinstance(base, ast.Name) else (None, module)
    if isinstance(base, ast.Attribute):  # `import package.module as name`, then `name.Class`
        dotted = _dotted(base, module)
        try:
            located = None if dotted is None else locate(dotted, package_of(module.name))
            binding, where = (None, module) if located is None else find_definition(*located)
        except (LookupError, Unreadable):
            return None
    return (binding, where) if isinstance(binding, ast.ClassDef) else None


def _dotted(node: ast.expr, module: Module) -> str | None:
    """Return the full name of an attribute of a module that another module imports."""
    if isinstance(node, ast.Attribute):
        holder = _dotted(node.value, module)
        return None if holder is None else f"{holder}.{node.attr}"
    binding = module.names.get(node.id) if isinstance(node, ast.Name) else None
    return binding if isinstance(binding, str) else None


def follow(name: str, module: Module) -> tuple[Binding, Module]:
    """Return what a name of a module is bound to, and the module that binds it: the last one that can be read."""
    passed: set[tuple[Path, str]] = set()
    binding = module.names.get(name)
    while isinstance(binding, str) and meaning(binding) is Any and (module.path, name) not in passed:
        passed.add((module.path, name))
        try:
            located = locate(binding, package_of(module.name))
            if located is None or len(located[1]) != 1 or located[1][0] not in located[0].names:
                break
        except (LookupError, SyntaxError, ValueError, OSError):
            break
        module, (name,) = located
        binding = module.names[name]
    return binding, module


def resolve(node: ast.expr | None, module: Module, above: tuple[tuple[Path, str], ...] = ()) -> object:
    """Return the object that an annotation of a module means; `above` are the aliases that are being read."""
    return Any if node is None else read_annotation(node, partial(_find, module=module, above=above))


def _find(name: str, module: Module, above: tuple[tuple[Path, str], ...] = ()) -> object:
    """Return the object that a name means in annotations of a module."""
    if name not in module.names:
        return find_builtin(name)
    binding, where = follow(name, module)
    if isinstance(binding, ast.expr):
        alias = (where.path, name)
        return Any if alias in above else resolve(binding, where, (*above, alias))
    return meaning(binding)


def literal(node: Binding) -> Any:
    """Return the value of a literal; None for anything else."""
    try:
        return ast.literal_eval(node) if isinstance(node, ast.expr) else None
    except ValueError:
        return None
