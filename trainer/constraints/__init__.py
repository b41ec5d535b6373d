"""Constraints on the arguments of parts: declared once at a constructor's parameters, checked in two places.

A parameter's annotation names its type; `Annotated` metadata, or one of the names below, limits the range. A `Rule`
relates several arguments of one part. `@validated` enforces both when the part is made; `trainer.config` reads the same
declarations from the source and reports problems before torch is loaded.

    @validated(Rule("dim % heads == 0", key="heads", problem="must divide dim ({dim})"))
    def __init__(self, dim: Count, heads: Count, dropout: BelowOne, weight: list[NonNegative] | None = None) -> None:
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache, wraps
from typing import Annotated, Any, TypeAlias, TypeVar

from annotated_types import Ge, Gt, Interval, MinLen

from trainer.constraints.annotations import AllowInfinity, IsDuration, IsTime, Note, PathTo, is_constrained
from trainer.constraints.declarations import resolve_annotation
from trainer.constraints.rules import Rule, broken_rules
from trainer.constraints.values import value_problems
from trainer.errors import raise_if_any

__all__ = ["AllowInfinity", "Note", "PathTo", "Rule", "validated"]

_Part = TypeVar("_Part", bound=Callable[..., Any])


Finite: TypeAlias = Annotated[float, Interval()]
"""A finite number."""
Positive: TypeAlias = Annotated[float, Gt(0)]
"""(0, inf)"""
PositiveOrInfinite: TypeAlias = Annotated[float, Gt(0), AllowInfinity()]
"""(0, inf]"""
NonNegative: TypeAlias = Annotated[float, Ge(0)]
"""[0, inf)"""
Probability: TypeAlias = Annotated[float, Interval(ge=0, le=1)]
"""[0, 1]"""
Fraction: TypeAlias = Annotated[float, Interval(gt=0, lt=1)]
"""(0, 1)"""
BelowOne: TypeAlias = Annotated[float, Interval(ge=0, lt=1)]
"""[0, 1): dropout, momentum, label smoothing."""
PositiveToOne: TypeAlias = Annotated[float, Interval(gt=0, le=1)]
"""(0, 1]"""
AtLeastOne: TypeAlias = Annotated[float, Ge(1)]
"""[1, inf)"""
Count: TypeAlias = Annotated[int, Ge(1)]
"""1, 2, 3, ..."""
Port: TypeAlias = Annotated[int, Interval(ge=0, le=65535)]
"""A port of TCP; 0 takes a free one."""
NonNegativeInt: TypeAlias = Annotated[int, Ge(0)]
"""0, 1, 2, ..."""
Seed: TypeAlias = Annotated[int, Interval(ge=0, lt=2**64)]
"""The seed of a random number generator."""
Duration: TypeAlias = Annotated[int | str, IsDuration()]
"""Optimizer steps, or a number with a unit: `500st`, `3ep`, `0.5ep`, `10%` (of the run)."""
Time: TypeAlias = Annotated[str, IsTime()]
"""An amount of time: `30s`, `10m`, `4h`, `1d` or `1h30m`."""
NonEmptyStr: TypeAlias = Annotated[str, MinLen(1)]
"""Text of at least one character."""
DataFile: TypeAlias = Annotated[str, MinLen(1), PathTo("file")]
"""A file, or a pattern of files, relative to `run.cwd`."""
DataFolder: TypeAlias = Annotated[str, MinLen(1), PathTo("folder")]
"""A folder, relative to `run.cwd`."""
DataName: TypeAlias = Annotated[str, MinLen(1), PathTo(must_exist=False, hub=True)]
"""A folder relative to `run.cwd` if there is one, else any other name, such as a data set of the hub."""
RunPath: TypeAlias = Annotated[str, MinLen(1), PathTo()]
"""A run, a checkpoint or a file, relative to `run.cwd`."""
WeightsPath: TypeAlias = Annotated[str, MinLen(1), PathTo(from_cwd=False)]
"""Weights that exist, relative to the working directory."""
HubPath: TypeAlias = Annotated[str, MinLen(1), PathTo(from_cwd=False, hub=True)]
"""A folder, relative to the working directory, or `owner/name` on the Hugging Face hub."""
AnyPath: TypeAlias = Annotated[str, MinLen(1), PathTo(from_cwd=False, must_exist=False)]
"""A path, relative to the working directory; the job finds out if something is there."""
BaseFolder: TypeAlias = Annotated[str, MinLen(1), PathTo("folder", from_cwd=False)]
"""A folder that exists, relative to the working directory."""


def validated(*rules: Rule) -> Callable[[_Part], _Part]:
    """Check the arguments of a part when it is made.

    Decorates an `__init__`, a function that makes a part, or a dataclass (directly below `@dataclass`; dataclasses
    derived from it are checked too, by its rules and by their own).

    Only arguments whose annotation has metadata are checked; a type without metadata is left to the type checker.

    Raises:
        TypeError: A rule is no expression that a `Rule` allows, or names a parameter that the part does not have.
        ConfigError: The decorated callable is called with arguments that are wrong; has all messages.
    """
    assert all(isinstance(rule, Rule) for rule in rules), "write @validated() with parentheses"

    def decorate(part: _Part) -> _Part:
        checked: _Part = _validated_class(part, rules) if isinstance(part, type) else _validated_function(part, rules)
        return checked

    return decorate


def _require_readable(rules: Sequence[Rule], part: Callable[..., object] | type, parameters: Collection[str]) -> None:
    for rule in rules:
        if fault := rule.fault(parameters):
            raise TypeError(f"{part.__module__}.{part.__qualname__}: {'. '.join(filter(None, fault))}")


def _validated_function(function: Any, rules: Sequence[Rule]) -> Any:
    accepted: dict[str, object] | None = None
    _require_readable(rules, function, inspect.signature(function).parameters if rules else ())

    @cache  # at the first call, as most parts that are imported are never made
    def declaration() -> tuple[inspect.Signature, dict[str, object], int]:
        """Return the signature, the annotations that constrain, and the number of leading parameters without any."""
        signature = inspect.signature(function)
        annotations = {
            name: annotation
            for name, parameter in signature.parameters.items()
            if is_constrained(annotation := resolve_annotation(parameter.annotation, function.__globals__))
        }
        named = {name for rule in rules for name in rule.names()}
        free = [name not in named and name not in annotations for name in signature.parameters]
        return signature, annotations, free.index(False) if False in free else len(free)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal accepted
        # The loop calls a schedule at every step with the same keyword arguments: they are checked once.
        signature, annotations, num_free = declaration()
        if kwargs == accepted and len(args) <= num_free:
            return function(*args, **kwargs)
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # raises the interpreter's own message
        bound.apply_defaults()
        _check(bound.arguments, annotations, rules)
        is_plain = len(args) <= num_free and all(isinstance(value, int | float | str) for value in kwargs.values())
        accepted = kwargs if is_plain else None
        return function(*args, **kwargs)

    return checked


def _validated_class(part: Any, rules: Sequence[Rule]) -> Any:
    assert "__dataclass_fields__" not in part.__dict__, "write @validated directly below @dataclass"
    after = getattr(part, "__post_init__", None)
    if "__post_init__" not in part.__dict__ and hasattr(after, "__validates__"):
        after = None  # this class checks what its base would

    def __post_init__(self: Any) -> None:  # noqa: N807
        sources = inspect.getmro(type(self))
        annotations = {}
        for item in dataclasses.fields(self):
            owner = next(each for each in sources if item.name in inspect.get_annotations(each))
            annotations[item.name] = resolve_annotation(item.type, _globals_of(owner))
        declared = [rule for each in reversed(sources) for rule in each.__dict__.get("__rules__", ())]
        constrained = {name: annotation for name, annotation in annotations.items() if is_constrained(annotation)}
        _check({name: getattr(self, name) for name in annotations}, constrained, declared)
        if after is not None:
            after(self)

    __post_init__.__validates__ = True  # type: ignore[attr-defined]
    part.__post_init__ = __post_init__
    part.__rules__ = tuple(rules)
    fields = {name for each in inspect.getmro(part) for name in inspect.get_annotations(each)}
    _require_readable(rules, part, fields)
    return part


def _globals_of(owner: type) -> Mapping[str, object]:
    return vars(sys.modules[owner.__module__])


def _check(arguments: Mapping[str, object], annotations: Mapping[str, object], rules: Sequence[Rule]) -> None:
    problems = {
        name: value_problems(name, arguments[name], annotation)
        for name, annotation in annotations.items()
        if name in arguments
    }
    wrong = frozenset(name for name, messages in problems.items() if messages)
    raise_if_any(
        *(message for messages in problems.values() for message in messages),
        *broken_rules(arguments, rules, skip=wrong),
    )
