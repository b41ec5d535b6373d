"""The parameters, rules and declared attributes of parts, read from their source without importing it.

Only modules of this package and of the working directory are read. Other packages may create their names during the
import, so their sources do not prove that a name is missing. They only show that a class is derived from one of ours.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, ClassVar, Optional, TypeAlias, get_origin

from annotated_types import Gt

from trainer.config.groups import OWN, PACKAGE, is_local
from trainer.constraints import Duration, validated
from trainer.constraints.declarations import Binding, bindings, find_builtin, meaning, read_annotation
from trainer.constraints.rules import Rule
from trainer.constraints.values import fits_type, value_problems
from trainer.errors import did_you_mean

_Definition: TypeAlias = ast.ClassDef | ast.FunctionDef
_DYNAMIC = ("globals(", "vars(", "setattr(")


@dataclass(frozen=True)
class Signature:
    """Parameters of a callable.

    Attributes:
        annotations: The annotation of every parameter that can be passed by name (Any without an annotation).
        required: The parameters without a default.
        open: The callable takes any other keyword (`**kwargs`).
        rules: The relations between parameters that `@validated` declares.
        faults: Why rules cannot be checked: the problem of each and its remedy.
        is_class: The callable is a class.
        is_wrapped: A decorator of another package may set or add parameters.
    """

    annotations: Mapping[str, object]
    required: frozenset[str]
    open: bool
    rules: tuple[Rule, ...] = ()
    faults: tuple[tuple[str, str], ...] = ()
    is_class: bool = False
    is_wrapped: bool = False

    def annotation(self, key: str) -> object | None:
        """Return the annotation of the YAML key `key`, or None if there is no such key.

        The key `x` of a parameter `x_steps` is a duration.
        """
        if key in self.annotations:
            return self.annotations[key]
        steps = self.annotations.get(f"{key}_steps")
        if steps is None:
            return Any if self.open else None
        duration = Annotated[Duration, Gt(0)] if value_problems(key, 0, steps) else Duration
        return Optional[duration] if fits_type(None, steps) else duration  # noqa: UP045  mypy knows no type here


def read(target: str, *, any_package: bool = False) -> Signature | None:
    """Return the signature of a dotted `target`, or None if its source does not tell.

    Args:
        target: The dotted name.
        any_package: Read an installed package as well.

    Raises:
        LookupError: There is no such module or name; the message says so, with the nearest match.
    """
    return _read_own(target) if target.startswith(OWN) else _read_target(target, any_package=any_package)


def _read_target(target: str, *, any_package: bool = False) -> Signature | None:
    located = _located(target, _package_of(target) if any_package else "")
    if located is None:
        return None
    module, names = located
    if not names:
        raise LookupError("names a module; a class or function in it is needed")
    try:
        definition = _definition(module, names)
    except _Unreadable:
        return None
    signature = _signature(*definition, bound=len(names) > 1)
    if signature is None:
        return None
    return dataclasses.replace(signature, is_class=isinstance(definition[0], ast.ClassDef))


_read_own = lru_cache(maxsize=256)(_read_target)
"""A command asks for the signatures of this package again and again; the files of the user may change meanwhile."""


def is_subclass(target: str, base: str) -> bool:
    """Return whether the sources of two dotted names show that the first is a class derived from the second."""
    try:
        located, above = _located(target, _package_of(target)), _located(base)
        if located is None or above is None:
            return False
        definition, module = _definition(*located)
        base_definition, _ = _definition(*above)
    except (LookupError, _Unreadable):
        return False
    classes = [(definition, module)] if isinstance(definition, ast.ClassDef) else []
    seen: list[ast.ClassDef] = []
    while classes:
        each, module = classes.pop()
        if each is base_definition:
            return True
        if each not in seen:
            seen.append(each)
            classes += filter(None, (_class_of(item, module) for item in each.bases))
    return False


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
    return _literal(module.names.get(name))


def part_attribute(config: Mapping[str, Any], group: str, name: str) -> Any:
    """Return a literal that the part of a group declares, as `attribute` does."""
    part = config.get(group)
    target = part.get("_target_") if isinstance(part, Mapping) else None
    return attribute(target, name) if isinstance(target, str) else None


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
    def names(self) -> Mapping[str, Binding]:
        """The names that the module binds."""
        return _names(self.path, self.package)


@lru_cache(maxsize=128)
def _names(path: Path, package: str) -> dict[str, Binding]:
    return bindings(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)).body, package)


def _package_of(dotted: str) -> str:
    return dotted.partition(".")[0]


def _located(target: str, reader: str = "") -> tuple[_Module, list[str]] | None:
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
            return _Module(dotted, dotted.rpartition(".")[0], file), rest
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


def _in_package(folder: Path, package: list[str], rest: list[str], *, own: bool) -> tuple[_Module, list[str]] | None:
    if own or (package and not (folder / "__init__.py").is_file()):
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
        scope = module.names
    except (SyntaxError, ValueError, OSError) as error:  # reported with the reason when the module is imported
        raise _Unreadable from error
    definition: _Definition | None = None
    where = module.name
    for position, name in enumerate(names):
        binding = scope.get(name)
        if isinstance(binding, str) and definition is None:
            located = _located(".".join([binding, *names[position + 1 :]]), _package_of(module.name))
            if located is None:
                raise _Unreadable
            return _definition(*located)
        if not isinstance(binding, _Definition):
            raise _missing(module, where, name, scope)
        where += f".{name}"
        definition, scope = binding, bindings(binding.body, module.package)
    if definition is None:
        raise _Unreadable
    return definition, module


def _missing(module: _Module, where: str, name: str, scope: Mapping[str, Binding]) -> Exception:
    known = sorted(each for each in scope if not each.startswith("_"))
    if not module.name.startswith(OWN):
        source = module.path.read_text(encoding="utf-8")
        is_package = module.path.name == "__init__.py"
        if is_package or name in scope or {"*", "__getattr__"} & {*scope} or any(word in source for word in _DYNAMIC):
            return _Unreadable()
    else:
        known = [each for each in known if isinstance(scope[each], _Definition)]
    return LookupError(f"there is no {name} in {where}. {did_you_mean(name, known)}".rstrip())


def _follow(name: str, module: _Module) -> tuple[Binding, _Module]:
    """Return what a name of a module is bound to, and the module that binds it: the last one that can be read."""
    passed: set[tuple[Path, str]] = set()
    binding = module.names.get(name)
    while isinstance(binding, str) and meaning(binding) is Any and (module.path, name) not in passed:
        passed.add((module.path, name))
        try:
            located = _located(binding, _package_of(module.name))
            if located is None or len(located[1]) != 1 or located[1][0] not in located[0].names:
                break
        except (LookupError, SyntaxError, ValueError, OSError):
            break
        module, (name,) = located
        binding = module.names[name]
    return binding, module


def _find(name: str, module: _Module, above: tuple[tuple[Path, str], ...] = ()) -> object:
    """Return the object that a name means in annotations of a module; `above` are the aliases that are being read."""
    if name not in module.names:
        return find_builtin(name)
    binding, where = _follow(name, module)
    if isinstance(binding, ast.expr):
        alias = (where.path, name)
        return Any if alias in above else _read(binding, where, (*above, alias))
    return meaning(binding)


def _read(node: ast.expr | None, module: _Module, above: tuple[tuple[Path, str], ...] = ()) -> object:
    return Any if node is None else read_annotation(node, partial(_find, module=module, above=above))


# Signatures


def _signature(definition: _Definition, module: _Module, *, bound: bool) -> Signature | None:
    if isinstance(definition, ast.FunctionDef):
        return _function_signature(definition, module, bound=bound)
    signature = _class_signature(definition, module)
    if signature is None:
        return None
    has_metaclass = any(keyword.arg == "metaclass" for keyword in definition.keywords)
    is_wrapped = signature.is_wrapped or has_metaclass or _is_wrapped(definition, module)
    return dataclasses.replace(signature, is_wrapped=is_wrapped)


def _class_signature(definition: ast.ClassDef, module: _Module) -> Signature | None:
    if _is_dataclass(definition, module):
        return _dataclass_signature(definition, module)
    functions = {item.name: item for item in definition.body if isinstance(item, ast.FunctionDef)}
    for name in ("__new__", "__init__"):  # the order in which Python looks for the parameters
        if name in functions:
            return _function_signature(functions[name], module, bound=True)
    if not definition.bases:
        return Signature({}, frozenset(), open=False)
    base = _class_of(definition.bases[0], module)
    return None if base is None else _signature(*base, bound=True)


def _is_wrapped(definition: _Definition, module: _Module) -> bool:
    """Return whether a decorator of a class or function is not one of those that leave its parameters as they are."""
    return any(_decorator(each, module) not in (validated, dataclasses.dataclass) for each in definition.decorator_list)


def _is_dataclass(definition: ast.ClassDef, module: _Module) -> bool:
    return any(_decorator(item, module) is dataclasses.dataclass for item in definition.decorator_list)


def _decorator(node: ast.expr, module: _Module) -> object:
    """Return the function that a decorator, with arguments or without, names."""
    return _read(node.func if isinstance(node, ast.Call) else node, module)


def _dataclass_signature(definition: ast.ClassDef, module: _Module) -> Signature | None:
    """Return the fields of a dataclass and its bases; None if a base cannot be read."""
    annotations: dict[str, object] = {}
    required: set[str] = set()
    rules: tuple[Rule, ...] = ()
    for base in reversed(definition.bases):
        parent = _class_of(base, module)
        if parent is None or not _is_dataclass(*parent) or (inherited := _dataclass_signature(*parent)) is None:
            return None
        annotations |= inherited.annotations
        required |= inherited.required
        rules += inherited.rules
    for item in definition.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = _read_optional(item.annotation, item.value, module)
        if annotation is ClassVar or get_origin(annotation) is ClassVar:
            continue
        annotations[item.target.id] = annotation
        required.discard(item.target.id)
        if item.value is None:
            required.add(item.target.id)
    rules += tuple(_rules(definition, module))
    return Signature(annotations, frozenset(required), False, rules, _faults(rules, annotations))


def _class_of(base: ast.expr, module: _Module) -> tuple[ast.ClassDef, _Module] | None:
    """Return a base class and its module; None if it cannot be read."""
    binding, where = _follow(base.id, module) if isinstance(base, ast.Name) else (None, module)
    if isinstance(base, ast.Attribute):  # `import package.module as name`, then `name.Class`
        dotted = _dotted(base, module)
        try:
            located = None if dotted is None else _located(dotted, _package_of(module.name))
            binding, where = (None, module) if located is None else _definition(*located)
        except (LookupError, _Unreadable):
            return None
    return (binding, where) if isinstance(binding, ast.ClassDef) else None


def _dotted(node: ast.expr, module: _Module) -> str | None:
    """Return the full name of an attribute of a module that another module imports."""
    if isinstance(node, ast.Attribute):
        holder = _dotted(node.value, module)
        return None if holder is None else f"{holder}.{node.attr}"
    binding = module.names.get(node.id) if isinstance(node, ast.Name) else None
    return binding if isinstance(binding, str) else None


def _function_signature(definition: ast.FunctionDef, module: _Module, *, bound: bool) -> Signature:
    parameters = definition.args
    positional = [*parameters.posonlyargs, *parameters.args]
    with_default = positional[len(positional) - len(parameters.defaults) :]
    defaults = {item.arg: value for item, value in zip(with_default, parameters.defaults, strict=True)}
    keywords = zip(parameters.kwonlyargs, parameters.kw_defaults, strict=True)
    defaults |= {item.arg: value for item, value in keywords if value is not None}
    positional = positional[1:] if bound else positional
    named = [item for item in (*positional, *parameters.kwonlyargs) if item not in parameters.posonlyargs]
    annotations = {item.arg: _read_optional(item.annotation, defaults.get(item.arg), module) for item in named}
    rules = tuple(_rules(definition, module))
    faults = _faults(rules, [item.arg for item in (*positional, *parameters.kwonlyargs)])
    required, is_open = frozenset(annotations) - defaults.keys(), parameters.kwarg is not None
    return Signature(annotations, required, is_open, rules, faults, is_wrapped=_is_wrapped(definition, module))


def _read_optional(node: ast.expr | None, default: ast.expr | None, module: _Module) -> Any:
    """Return the annotation of a parameter, which also allows null if null is its default (`size: int = None`)."""
    annotation: Any = _read(node, module)
    has_null = isinstance(default, ast.Constant) and default.value is None
    return annotation if not has_null or fits_type(None, annotation) else Optional[annotation]  # noqa: UP045


def _faults(rules: Iterable[Rule], parameters: Collection[str]) -> tuple[tuple[str, str], ...]:
    return tuple(filter(None, (rule.fault(parameters) for rule in rules)))


def _rules(definition: _Definition, module: _Module) -> Iterator[Rule]:
    """Yield the rules that `@validated(...)` declares."""
    for decorator in definition.decorator_list:
        if isinstance(decorator, ast.Call) and _decorator(decorator, module) is validated:
            for argument in decorator.args:
                yield from _declared_rules(argument, module)


def _declared_rules(node: Binding, module: _Module, above: tuple[Binding, ...] = ()) -> Iterator[Rule]:
    """Yield the rules in an argument of `@validated`; `above` are the lists that contain it."""
    if isinstance(node, ast.Starred):
        yield from _declared_rules(node.value, module, above)
    elif isinstance(node, ast.List | ast.Tuple) and node not in above:
        for item in node.elts:
            yield from _declared_rules(item, module, (*above, node))
    elif isinstance(node, ast.Name):
        yield from _declared_rules(*_follow(node.id, module), above)
    elif isinstance(node, ast.Call) and _decorator(node, module) is Rule:
        try:
            positional = [ast.literal_eval(argument) for argument in node.args]
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            yield Rule(*positional, **named)
        except (ValueError, TypeError):  # not written as literals: enforced when the part is made
            return


def _literal(node: Binding) -> Any:
    try:
        return ast.literal_eval(node) if isinstance(node, ast.expr) else None
    except ValueError:
        return None


def _attribute(definition: ast.ClassDef, module: _Module, name: str) -> Any:
    value = _literal(bindings(definition.body, module.package).get(name))
    parents = (_class_of(base, module) for base in definition.bases)
    inherited = (_attribute(*parent, name) for parent in parents if parent is not None)
    return value if value is not None else next((each for each in inherited if each is not None), None)
