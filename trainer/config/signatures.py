"""The parameters, rules and declared attributes of parts, read from their source without importing it."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Optional, get_origin

from annotated_types import Gt

from trainer.config.groups import OWN
from trainer.config.sources import (
    Definition,
    Module,
    Unreadable,
    find_class,
    find_definition,
    follow,
    literal,
    locate,
    package_of,
    resolve,
)
from trainer.constraints import Duration, validated
from trainer.constraints.declarations import Binding, bindings
from trainer.constraints.rules import Rule
from trainer.constraints.values import fits_type, value_problems


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


_NO_PARAMETERS = Signature({}, frozenset(), open=False)


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
    located = locate(target, package_of(target) if any_package else "")
    if located is None:
        return None
    module, names = located
    if not names:
        raise LookupError("names a module; a class or function in it is needed")
    try:
        definition = find_definition(module, names)
    except Unreadable:
        return None
    signature = _signature(*definition, bound=len(names) > 1)
    if signature is None:
        return None
    return dataclasses.replace(signature, is_class=isinstance(definition[0], ast.ClassDef))


_read_own = lru_cache(maxsize=256)(_read_target)
"""A command asks for the signatures of this package again and again; the files of the user may change meanwhile."""


def attribute(target: str, name: str) -> Any:
    """Return a literal that a dotted `target` declares; None if there is none to read.

    A class declares an attribute, itself or in a base; a function declares a constant of its module.
    """
    try:
        located = locate(target)
        if located is None:
            return None
        definition, module = find_definition(*located)
    except (LookupError, Unreadable):
        return None
    if isinstance(definition, ast.ClassDef):
        return _attribute(definition, module, name)
    return literal(module.names.get(name))


def part_attribute(config: Mapping[str, Any], group: str, name: str) -> Any:
    """Return a literal that the part of a group declares, as `attribute` does."""
    part = config.get(group)
    target = part.get("_target_") if isinstance(part, Mapping) else None
    return attribute(target, name) if isinstance(target, str) else None


def _signature(definition: Definition, module: Module, *, bound: bool) -> Signature | None:
    if isinstance(definition, ast.FunctionDef):
        return _function_signature(definition, module, bound=bound)
    signature = _class_signature(definition, module)
    if signature is None:
        return None
    has_metaclass = any(keyword.arg == "metaclass" for keyword in definition.keywords)
    is_wrapped = signature.is_wrapped or has_metaclass or _is_wrapped(definition, module)
    return dataclasses.replace(signature, is_wrapped=is_wrapped)


def _class_signature(definition: ast.ClassDef, module: Module) -> Signature | None:
    functions = {item.name: item for item in definition.body if isinstance(item, ast.FunctionDef)}
    bound = bindings(definition.body, module.package)
    for name in ("__new__", "__init__"):  # the order in which Python looks for the parameters
        if name in bound:  # assigned, or defined under a condition, the source does not tell
            return _function_signature(functions[name], module, bound=True) if name in functions else None
    if _is_dataclass(definition, module):
        return _dataclass_signature(definition, module)
    return _inherited_signature(definition, module)


def _inherited_signature(definition: ast.ClassDef, module: Module) -> Signature | None:
    """Return the signature of the first base that has a constructor; None if another base may replace it."""
    signatures: list[Signature] = []
    for base in definition.bases:
        parent = find_class(base, module)
        signature = None if parent is None else _signature(*parent, bound=True)
        if signature is None and not signatures:
            return None
        if signature is not None and (signature.is_wrapped or signature != _NO_PARAMETERS):
            signatures.append(signature)
    if any(signature != signatures[0] for signature in signatures[1:]):
        return None  # the order in which Python searches the bases decides
    return signatures[0] if signatures else _NO_PARAMETERS


def _is_wrapped(definition: Definition, module: Module) -> bool:
    """Return whether a decorator of a class or function is not one of those that leave its parameters as they are."""
    return any(_decorator(each, module) not in (validated, dataclasses.dataclass) for each in definition.decorator_list)


def _is_dataclass(definition: ast.ClassDef, module: Module) -> bool:
    return any(_decorator(item, module) is dataclasses.dataclass for item in definition.decorator_list)


def _decorator(node: ast.expr, module: Module) -> object:
    """Return the function that a decorator, with arguments or without, names."""
    return resolve(node.func if isinstance(node, ast.Call) else node, module)


def _dataclass_signature(definition: ast.ClassDef, module: Module) -> Signature | None:
    """Return the fields of a dataclass and its bases; None if a base cannot be read."""
    annotations: dict[str, object] = {}
    required: set[str] = set()
    rules: tuple[Rule, ...] = ()
    for base in reversed(definition.bases):
        parent = find_class(base, module)
        if parent is None or not _is_dataclass(*parent) or (inherited := _dataclass_signature(*parent)) is None:
            return None
        annotations |= inherited.annotations
        required |= inherited.required
        rules += inherited.rules
    for item in definition.body:
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        annotation = _read_optional(item.annotation, item.value, module)
        if annotation is ClassVar or get_origin(annotation) is ClassVar or annotation is dataclasses.KW_ONLY:
            continue
        annotations[item.target.id] = annotation
        required.discard(item.target.id)
        if item.value is None:
            required.add(item.target.id)
    rules += tuple(_rules(definition, module))
    return Signature(annotations, frozenset(required), False, rules, _faults(rules, annotations))


def _function_signature(definition: ast.FunctionDef, module: Module, *, bound: bool) -> Signature:
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


def _read_optional(node: ast.expr | None, default: ast.expr | None, module: Module) -> Any:
    """Return the annotation of a parameter, which also allows null if null is its default (`size: int = None`)."""
    annotation: Any = resolve(node, module)
    has_null = isinstance(default, ast.Constant) and default.value is None
    return annotation if not has_null or fits_type(None, annotation) else Optional[annotation]  # noqa: UP045


def _faults(rules: Iterable[Rule], parameters: Collection[str]) -> tuple[tuple[str, str], ...]:
    return tuple(filter(None, (rule.fault(parameters) for rule in rules)))


def _rules(definition: Definition, module: Module) -> Iterator[Rule]:
    """Yield the rules that `@validated(...)` declares."""
    for decorator in definition.decorator_list:
        if isinstance(decorator, ast.Call) and _decorator(decorator, module) is validated:
            for argument in decorator.args:
                yield from _declared_rules(argument, module)


def _declared_rules(node: Binding, module: Module, above: tuple[Binding, ...] = ()) -> Iterator[Rule]:
    """Yield the rules in an argument of `@validated`; `above` are the lists that contain it."""
    if isinstance(node, ast.Starred):
        yield from _declared_rules(node.value, module, above)
    elif isinstance(node, ast.List | ast.Tuple) and node not in above:
        for item in node.elts:
            yield from _declared_rules(item, module, (*above, node))
    elif isinstance(node, ast.Name):
        yield from _declared_rules(*follow(node.id, module), above)
    elif isinstance(node, ast.Call) and _decorator(node, module) is Rule:
        try:
            positional = [ast.literal_eval(argument) for argument in node.args]
            named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in node.keywords}
            yield Rule(*positional, **named)
        except (ValueError, TypeError):  # not written as literals: enforced when the part is made
            return


def _attribute(definition: ast.ClassDef, module: Module, name: str) -> Any:
    value = literal(bindings(definition.body, module.package).get(name))
    parents = (find_class(base, module) for base in definition.bases)
    inherited = (_attribute(*parent, name) for parent in parents if parent is not None)
    return value if value is not None else next((each for each in inherited if each is not None), None)
