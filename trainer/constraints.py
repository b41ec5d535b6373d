"""Constraints on the arguments of parts: declared once at a constructor's parameters, checked in two places.

A parameter's annotation names its type; `Annotated` metadata, or one of the aliases below, limits the range. A `Rule`
relates several arguments of one part. `@validated` enforces both when the part is made; `trainer.config` reads the same
declarations from the source and reports problems before torch is loaded.

    @validated(Rule("dim % heads == 0", key="heads", problem="must divide dim ({dim})"))
    def __init__(self, dim: Count, heads: Count, dropout: BelowOne, weight: list[NonNegative] | None = None) -> None:
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from types import UnionType
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar, get_origin

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen, MultipleOf

from trainer.durations import FORMS, parse
from trainer.errors import format_error, raise_if_any

_Part = TypeVar("_Part", bound=Callable[..., Any])


@dataclass(frozen=True)
class AllowInfinity:
    """Metadata: an infinite number is allowed. All other numbers with metadata must be finite."""


@dataclass(frozen=True)
class Note:
    """Metadata: the reason for a range, shown in parentheses after it."""

    text: str


@dataclass(frozen=True)
class PathTo:
    """Metadata: text is a path.

    Attributes:
        noun: What is at the path, for messages.
        from_cwd: A relative path starts at `run.cwd`.
        must_exist: A path that does not exist is an error.
        hub: `owner/name` may also be a name on the Hugging Face hub; only what can be no such name must exist.
    """

    noun: Literal["file", "folder", "file or folder"] = "file or folder"
    from_cwd: bool = True
    must_exist: bool = True
    hub: bool = False

    @property
    def words(self) -> str:
        """The words that follow "must be" for such a value."""
        return "a path" if self.must_exist and not self.hub else "a path or a name"


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
NonNegativeInt: TypeAlias = Annotated[int, Ge(0)]
"""0, 1, 2, ..."""
WholeNumber: TypeAlias = Annotated[float, Ge(0), MultipleOf(1)]
"""0, 1, 2, ..., also written as 2.0."""
Seed: TypeAlias = Annotated[int, Interval(ge=0, lt=2**64)]
"""The seed of a random number generator."""
NonEmptyStr: TypeAlias = Annotated[str, MinLen(1)]
"""Text of at least one character."""
DataFile: TypeAlias = Annotated[str, MinLen(1), PathTo("file")]
"""A file, or a pattern of files, relative to `run.cwd`."""
DataFolder: TypeAlias = Annotated[str, MinLen(1), PathTo("folder")]
"""A folder, relative to `run.cwd`."""
DataName: TypeAlias = Annotated[str, MinLen(1), PathTo(must_exist=False)]
"""A folder relative to `run.cwd` if there is one, else any other name, such as a data set of the hub."""
RunPath: TypeAlias = Annotated[str, MinLen(1), PathTo()]
"""A run, a checkpoint or a file, relative to `run.cwd`."""
WeightsPath: TypeAlias = Annotated[str, MinLen(1), PathTo(from_cwd=False)]
"""Weights that exist, relative to the working directory."""
HubPath: TypeAlias = Annotated[str, MinLen(1), PathTo(from_cwd=False, hub=True)]
"""A folder, relative to the working directory, or `owner/name` on the Hugging Face hub."""

_METADATA: Final[dict[str, Callable[..., Any]]] = {
    cls.__name__: cls
    for cls in (Ge, Gt, Le, Lt, Interval, Len, MinLen, MaxLen, MultipleOf, AllowInfinity, Note, PathTo)
}
_SCALARS: Final[dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "int": ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("text", lambda value: isinstance(value, str)),
    "None": ("null", lambda value: value is None),
    "Duration": ("a duration", lambda value: parse(value) is not None),
}
_SEQUENCES: Final = {"list": "a list", "List": "a list", "Sequence": "a list", "tuple": "a list", "Tuple": "a list"}
_MAPPINGS: Final = {"dict": "a mapping", "Dict": "a mapping", "Mapping": "a mapping"}
_PLURALS: Final = {"int": "integers", "float": "numbers", "bool": "true or false", "str": "texts", "Any": "anything"}


# Annotations


def value_problems(key: str, value: Any, annotation: str) -> list[str]:
    """Return a message for each problem of a value that `annotation` does not allow.

    The grammar: int, float, bool, str, None, Duration, `|`, Optional, Union, Literal, list, Sequence, tuple, dict,
    Mapping, Annotated, Any. An int is a float, a bool is no int. An annotation outside the grammar allows every value.
    """
    node = _parsed(annotation)
    if not _fits_type(value, node):
        return [format_error(key, f"must be {_described(node)}", value=value)]
    problems = [format_error(f"{key}{path}", text, value=item) for text, item, path in _range_problems(value, node)]
    return list(dict.fromkeys(problems))


def fits_type(value: Any, annotation: str) -> bool:
    """Tell if `annotation` allows values of this type, in range or not."""
    return _fits_type(value, _parsed(annotation))


def describe(annotation: str) -> str:
    """Return the values of `annotation` in words that follow "must be"."""
    return _described(_parsed(annotation))


def forms(annotation: str) -> str:
    """Return how a value of `annotation` is written if its description does not say it; may be empty."""
    names = {node.id for node in ast.walk(_parsed(annotation)) if isinstance(node, ast.Name)}
    return FORMS if "Duration" in names else ""


def literals(annotation: str) -> list[str]:
    """Return the texts that the `Literal`s of `annotation` allow."""
    subscripts = [node for node in ast.walk(_parsed(annotation)) if isinstance(node, ast.Subscript)]
    values = [value for node in subscripts if _name(node.value) == "Literal" for value in _literal_values(node)]
    return [value for value in values if isinstance(value, str)]


def mapping_item(annotation: str) -> str | None:
    """Return the annotation of a mapping's values if `annotation` allows a mapping or null only."""
    others = [node for node in _alternatives(_parsed(annotation)) if not isinstance(node, ast.Constant)]
    only = others[0] if len(others) == 1 else None
    if not isinstance(only, ast.Subscript) or _name(only.value) not in _MAPPINGS:
        return None
    return ast.unparse(_arguments(only)[1])


def is_constrained(annotation: str) -> bool:
    """Tell if `annotation` has metadata that this module knows."""
    nodes = (node for node in ast.walk(_parsed(annotation)) if isinstance(node, ast.Subscript))
    return any(_name(node.value) == "Annotated" and _metadata(node) for node in nodes)


def paths_in(value: Any, annotation: str) -> Iterator[tuple[str, PathTo, str]]:
    """Yield each path in a value, its metadata, and its key in the value (`.key` in a mapping, else empty)."""
    yield from _paths(value, _parsed(annotation), None)


def map_paths(value: Any, annotation: str, change: Callable[[str, PathTo], str]) -> Any:
    """Return the value with each of its paths changed, in lists and mappings too."""
    changed = {path: change(path, about) for path, about, _ in paths_in(value, annotation)}
    return _replaced(value, changed)


def expanded(annotation: str, resolve: Callable[[str], str | None]) -> str:
    """Return the annotation with each alias replaced by its definition.

    Args:
        annotation: The text of an annotation.
        resolve: Returns the expanded text of an alias, or None for any other name.
    """
    return ast.unparse(_Expansion(resolve).visit(_parse_text(annotation)))


def annotation_text(annotation: Any) -> str:
    """Return the text of an annotation: itself, or the `repr` of a type in the grammar of this module."""
    if isinstance(annotation, str):
        return annotation
    if annotation is None or annotation is type(None):
        return "None"
    return annotation.__name__ if isinstance(annotation, type) and get_origin(annotation) is None else repr(annotation)


class _Expansion(ast.NodeTransformer):
    def __init__(self, resolve: Callable[[str], str | None]) -> None:
        self.resolve = resolve

    def visit_Name(self, node: ast.Name) -> ast.expr:
        text = None if node.id in _SCALARS else self.resolve(node.id)
        return node if text is None else _parse_text(text)

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        return ast.Name(node.attr) if node.attr in ALIASES else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if _name(node.value) != "Literal":
            node.slice = self.visit(node.slice)
        return node


def _parse_text(annotation: str) -> ast.expr:
    try:
        expression = ast.parse(annotation, mode="eval").body
    except SyntaxError:  # the repr of an object that is no type
        return ast.Name("Any")
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return _parse_text(expression.value)
    return expression


@lru_cache(maxsize=1024)
def _parsed(annotation: str) -> ast.expr:
    return _Expansion(ALIASES.get).visit(_parse_text(annotation))  # type: ignore[no-any-return]


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return "None" if node.id == "NoneType" else node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    return "None" if isinstance(node, ast.Constant) and node.value is None else ""


def _arguments(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _literal_values(node: ast.Subscript) -> list[Any]:
    return [ast.literal_eval(argument) for argument in _arguments(node)]


def _alternatives(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _alternatives(node.left) + _alternatives(node.right)
    if isinstance(node, ast.Subscript) and _name(node.value) in ("Union", "Optional"):
        none = [ast.Constant(None)] if _name(node.value) == "Optional" else []
        return [item for argument in _arguments(node) for item in _alternatives(argument)] + none
    return [node]


def _metadata(node: ast.Subscript) -> list[Any]:
    calls = [item for item in _arguments(node)[1:] if isinstance(item, ast.Call) and _name(item.func) in _METADATA]
    return [
        _METADATA[_name(call.func)](
            *(_evaluated(argument, {}) for argument in call.args),
            **{str(keyword.arg): _evaluated(keyword.value, {}) for keyword in call.keywords},
        )
        for call in calls
    ]


def _is_endless(arguments: Sequence[ast.expr]) -> bool:
    """Tell if a tuple's arguments allow any length."""
    last = arguments[-1]
    return len(arguments) == 1 or (isinstance(last, ast.Constant) and last.value is Ellipsis)


def _items(value: Any, node: ast.Subscript) -> Iterator[tuple[Any, ast.expr, str]]:
    """Yield the items of a container, each with its annotation and its key (`.key` in a mapping, else empty)."""
    arguments = _arguments(node)
    if _name(node.value) in _MAPPINGS and isinstance(value, Mapping):
        for key, item in value.items():
            yield key, arguments[0], ""
            yield item, arguments[1], f".{key}"
    elif _name(node.value) in _SEQUENCES and isinstance(value, list | tuple):
        fixed = _name(node.value) in ("tuple", "Tuple") and not _is_endless(arguments)
        annotations = arguments if fixed else [arguments[0]] * len(value)
        yield from ((item, annotation, "") for item, annotation in zip(value, annotations, strict=False))


def _fits_type(value: Any, node: ast.expr) -> bool:
    if len(alternatives := _alternatives(node)) > 1:
        return any(_fits_type(value, alternative) for alternative in alternatives)
    if isinstance(node, ast.Subscript):
        return _fits_subscript(value, node)
    name = _name(node)
    if name in _SCALARS:
        return _SCALARS[name][1](value)
    if name in _SEQUENCES:
        return isinstance(value, list | tuple)
    return isinstance(value, Mapping) if name in _MAPPINGS else True


def _fits_subscript(value: Any, node: ast.Subscript) -> bool:
    name, arguments = _name(node.value), _arguments(node)
    if name == "Literal":
        return any(type(value) is type(known) and value == known for known in _literal_values(node))
    if name == "Annotated":
        return _fits_type(value, arguments[0])
    if name in _MAPPINGS:
        return isinstance(value, Mapping) and all(_fits_type(item, inner) for item, inner, _ in _items(value, node))
    if name not in _SEQUENCES:
        return True
    if not isinstance(value, list | tuple):
        return False
    if name in ("tuple", "Tuple") and not _is_endless(arguments) and len(value) != len(arguments):
        return False
    return all(_fits_type(item, inner) for item, inner, _ in _items(value, node))


def _range_problems(value: Any, node: ast.expr) -> list[tuple[str, Any, str]]:
    """Return each problem, the value that has it and the value's key, for a value whose type fits."""
    if len(alternatives := _alternatives(node)) > 1:
        tried = [_range_problems(value, item) for item in alternatives if _fits_type(value, item)]
        if not all(tried):
            return []
        if all(problems[0][1] is value for problems in tried):
            problems = list(dict.fromkeys(problem for ((problem, *_), *_) in tried))
            return [(" or ".join([problems[0], *(each.removeprefix("must be ") for each in problems[1:])]), value, "")]
        return tried[-1]
    if not isinstance(node, ast.Subscript):
        return []
    if _name(node.value) != "Annotated":
        return [
            (problem, wrong, f"{path}{inner_path}")
            for item, annotation, path in _items(value, node)
            for problem, wrong, inner_path in _range_problems(item, annotation)
        ]
    inner = _range_problems(value, _arguments(node)[0])
    return inner or [(problem, value, "") for problem in _metadata_problems(value, _metadata(node))]


def _metadata_problems(value: Any, metadata: Sequence[Any]) -> Iterator[str]:
    notes = "".join(f" ({item.text})" for item in metadata if isinstance(item, Note))
    duration = parse(value) if isinstance(value, str) else None
    if duration is not None or (isinstance(value, int | float) and not isinstance(value, bool)):
        amount = value if duration is None else float(duration.amount)
        if problem := _number_problem(amount, metadata):
            yield problem + notes
    elif isinstance(value, str | list | tuple | Mapping):
        least = max([0, *(item.min_length for item in metadata if isinstance(item, Len | MinLen))])
        most = [item.max_length for item in metadata if isinstance(item, Len | MaxLen) and item.max_length is not None]
        if len(value) < least or any(len(value) > limit for limit in most):
            yield _length_problem(least, min(most) if most else None, value) + notes


def _length_problem(least: int, most: int | None, value: Any) -> str:
    unit = f"{'character' if isinstance(value, str) else 'item'}{'' if most == 1 else 's'}"
    if least == 1 and most is None:
        return "must not be empty"
    if most is None:
        return f"must have at least {least} {unit}"
    return f"must have {least} {unit}" if least == most else f"must have {least} to {most} {unit}"


def _number_problem(value: float, metadata: Sequence[Any]) -> str | None:
    lower: tuple[Any, bool] | None = None
    upper: tuple[Any, bool] | None = None
    step: Any = None
    bounded = False
    for item in metadata:
        bounded |= isinstance(item, Gt | Ge | Lt | Le | Interval | MultipleOf)
        for name, strict in (("ge", False), ("gt", True)):
            if (bound := getattr(item, name, None)) is not None:
                lower = (bound, strict)
        for name, strict in (("le", False), ("lt", True)):
            if (bound := getattr(item, name, None)) is not None:
                upper = (bound, strict)
        step = item.multiple_of if isinstance(item, MultipleOf) else step
    unbounded = not math.isfinite(value) and not any(isinstance(item, AllowInfinity) for item in metadata)
    good = not (bounded and unbounded) and value == value
    good = good and (lower is None or (value > lower[0] if lower[1] else value >= lower[0]))
    good = good and (upper is None or (value < upper[0] if upper[1] else value <= upper[0]))
    good = good and (step is None or (math.isfinite(value) and value % step == 0))
    if good or not bounded:
        return None
    limits = _limits(lower, upper)
    if step is not None:
        limits = f"{'a whole number' if step == 1 else f'a multiple of {step}'}{f', {limits}' if limits else ''}"
    finite = "finite" if unbounded and (lower is None or upper is None) else ""
    return f"must be {' and '.join(filter(None, [finite, limits]))}"


def _limits(lower: tuple[Any, bool] | None, upper: tuple[Any, bool] | None) -> str:
    if lower and upper and not lower[1] and not upper[1]:
        return f"between {lower[0]} and {upper[0]}"
    words = [f"{'greater than' if lower[1] else 'at least'} {lower[0]}"] if lower else []
    words += [f"{'less than' if upper[1] else 'at most'} {_shown(upper[0])}"] if upper else []
    return " and ".join(words)


def _shown(bound: Any) -> str:
    power = bound.bit_length() - 1 if isinstance(bound, int) else 0
    return f"2 ** {power}" if power >= 32 and bound == 1 << power else str(bound)


def _described(node: ast.expr) -> str:
    if len(alternatives := _alternatives(node)) > 1:
        return _described_union(alternatives)
    if isinstance(node, ast.Subscript):
        return _described_subscript(node)
    name = _name(node)
    if name in _SCALARS:
        return _SCALARS[name][0]
    return _SEQUENCES.get(name) or _MAPPINGS.get(name) or "any value"


def _described_union(alternatives: Sequence[ast.expr]) -> str:
    literals = [isinstance(item, ast.Subscript) and _name(item.value) == "Literal" for item in alternatives]
    only_literals = any(literals) and all(
        is_literal or _name(item) == "None" for item, is_literal in zip(alternatives, literals, strict=True)
    )
    words = [_described(item).removeprefix("one of ") for item in alternatives]
    *others, last = dict.fromkeys(words)
    text = f"{', '.join(others)} or {last}" if others else last
    return f"one of {text}" if only_literals and "," in text else text


def _described_subscript(node: ast.Subscript) -> str:
    name, arguments = _name(node.value), _arguments(node)
    if name == "Literal":
        values = [str(value) for value in _literal_values(node)]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if name == "Annotated":
        paths = [item for item in _metadata(node) if isinstance(item, PathTo)]
        return paths[0].words if paths else _described(arguments[0])
    if name in _MAPPINGS | _SEQUENCES and _name(arguments[-1]) == "Any":
        return (_MAPPINGS | _SEQUENCES)[name]
    if name in _MAPPINGS:
        return f"a mapping to {_plural(arguments[1])}"
    if name in ("tuple", "Tuple") and not _is_endless(arguments):
        if len(set(plurals := [_plural(argument) for argument in arguments])) == 1 and ", each" not in plurals[0]:
            return f"a list of {len(arguments)} {plurals[0]}"
        return f"a list of {len(arguments)}: {', '.join(map(_described, arguments))}"
    return f"a list of {_plural(arguments[0])}" if name in _SEQUENCES else "any value"


def _plural(node: ast.expr) -> str:
    if isinstance(node, ast.Subscript) and _name(node.value) == "Annotated":
        paths = [item for item in _metadata(node) if isinstance(item, PathTo) and item.words == "a path"]
        return "paths" if paths else _plural(_arguments(node)[0])
    return _PLURALS.get(_name(node)) or f"items, each {_described(node)}"


def _paths(value: Any, node: ast.expr, about: PathTo | None, key: str = "") -> Iterator[tuple[str, PathTo, str]]:
    for alternative in _alternatives(node):
        if isinstance(alternative, ast.Subscript) and _name(alternative.value) == "Annotated":
            marks = [item for item in _metadata(alternative) if isinstance(item, PathTo)]
            yield from _paths(value, _arguments(alternative)[0], marks[0] if marks else about, key)
        elif isinstance(alternative, ast.Subscript):
            for item, annotation, path in _items(value, alternative):
                yield from _paths(item, annotation, about, f"{key}{path}")
        elif isinstance(value, str) and about is not None and _name(alternative) == "str":
            yield value, about, key


def _replaced(value: Any, changed: Mapping[str, str]) -> Any:
    if isinstance(value, list | tuple):
        return [_replaced(item, changed) for item in value]
    if isinstance(value, Mapping):
        return {key: _replaced(item, changed) for key, item in value.items()}
    return changed.get(value, value) if isinstance(value, str) else value


# Rules


@dataclass(frozen=True)
class Rule:
    """A relation between the arguments of one part.

    Attributes:
        condition: A Python expression over the parameters that must be true. It may use constants, arithmetic,
            comparisons, `and`, `or`, `not`, `in`, `if`/`else`, subscripts, generator expressions, and abs, all, any,
            int, float, isinstance, len, list, max, min, set, sorted, str and sum. A condition that cannot be evaluated
            because an argument is absent or has another type counts as met.
        key: The parameter that the message is about, or `parameter.key` for a key of a mapping.
        problem: The problem, without a period; `{name}` stands for an argument.
        remedy: The remedy, likewise.
    """

    condition: str
    key: str
    problem: str
    remedy: str = ""

    def broken_by(self, arguments: Mapping[str, Any]) -> bool:
        """Tell if the arguments do not meet the condition."""
        try:
            return not _evaluated(_condition(self.condition), arguments)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            return False

    def names(self) -> frozenset[str]:
        """Return the parameters that the condition reads."""
        names = {node.id for node in ast.walk(_condition(self.condition)) if isinstance(node, ast.Name)}
        return frozenset(names - set(_FUNCTIONS) - set(_TYPES))

    def message(self, arguments: Mapping[str, Any], prefix: str = "") -> str:
        """Return the message for arguments that break the rule."""
        key = f"{prefix}{self.key}"
        problem, remedy = (text.format_map(arguments) for text in (self.problem, self.remedy))
        value: Any = arguments
        for name in self.key.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return format_error(key, problem, remedy)
            value = value[name]
        return format_error(key, problem, remedy, value=value)


def broken_rules(
    arguments: Mapping[str, Any], rules: Sequence[Rule], *, prefix: str = "", skip: frozenset[str] = frozenset()
) -> list[str]:
    """Return a message for each broken rule.

    Args:
        arguments: The arguments of a part, by name.
        rules: The rules of the part.
        prefix: What precedes the names of arguments in messages, such as `loss.`.
        skip: Names of arguments that are wrong by themselves; rules that read one of them are not checked.
    """
    return [rule.message(arguments, prefix) for rule in rules if not rule.names() & skip and rule.broken_by(arguments)]


_TYPES: Final[dict[str, Any]] = {"int": int, "float": float, "str": str, "bool": bool, "list": list, "dict": dict}
_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    "abs": abs,
    "all": all,
    "any": any,
    "isinstance": isinstance,
    "len": len,
    "max": max,
    "min": min,
    "set": set,
    "sorted": sorted,
    "sum": sum,
    **_TYPES,
}
_MAX_EXPONENT: Final = 1024


def _power(base: Any, exponent: Any) -> Any:
    if abs(exponent) > _MAX_EXPONENT:
        raise OverflowError
    return base**exponent


_OPERATORS: Final[dict[type, Callable[..., Any]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, values: item in values,
    ast.NotIn: lambda item, values: item not in values,
}


@lru_cache(maxsize=256)
def _condition(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _evaluated(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Evaluate an expression in the subset of Python that a `Rule` allows.

    Raises:
        LookupError: A name is unknown.
        TypeError: The expression is outside that subset, or an operator does not take its operands.
    """
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names[node.id] if node.id in names else _FUNCTIONS[node.id]
        case ast.BoolOp():
            is_and = isinstance(node.op, ast.And)
            result: Any = is_and
            for operand in node.values:
                result = _evaluated(operand, names)
                if bool(result) != is_and:
                    break
            return result
        case ast.Compare():
            left = _evaluated(node.left, names)
            for comparison, operand in zip(node.ops, node.comparators, strict=True):
                right = _evaluated(operand, names)
                if not _OPERATORS[type(comparison)](left, right):
                    return False
                left = right
            return True
        case ast.BinOp():
            return _OPERATORS[type(node.op)](_evaluated(node.left, names), _evaluated(node.right, names))
        case ast.UnaryOp():
            return _OPERATORS[type(node.op)](_evaluated(node.operand, names))
        case ast.IfExp():
            return _evaluated(node.body if _evaluated(node.test, names) else node.orelse, names)
        case ast.List() | ast.Tuple() | ast.Set():
            items = [_evaluated(item, names) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        case ast.Subscript():
            return _evaluated(node.value, names)[_evaluated(node.slice, names)]
        case ast.Call(func=ast.Name(id=function), keywords=[]) if function in _FUNCTIONS:
            return _FUNCTIONS[function](*(_evaluated(argument, names) for argument in node.args))
        case ast.GeneratorExp(generators=[ast.comprehension(target=ast.Name(id=name)) as loop]):
            scopes = ({**names, name: item} for item in _evaluated(loop.iter, names))
            return [
                _evaluated(node.elt, scope)
                for scope in scopes
                if all(_evaluated(condition, scope) for condition in loop.ifs)
            ]
    raise TypeError(f"{ast.unparse(node)} is not allowed here")


# Enforcement


def validated(*rules: Rule) -> Callable[[_Part], _Part]:
    """Check the arguments of a part when it is made.

    Decorates an `__init__`, a function that makes a part, or a dataclass (directly below `@dataclass`; dataclasses
    derived from it are checked too, by its rules and by their own).

    Only arguments whose annotation has metadata are checked; a type without metadata is left to the type checker.

    Raises:
        ConfigError: The decorated callable is called with arguments that are wrong; has all messages.
    """
    assert all(isinstance(rule, Rule) for rule in rules), "write @validated() with parentheses"

    def decorate(part: _Part) -> _Part:
        checked: _Part = _validated_class(part, rules) if isinstance(part, type) else _validated_function(part, rules)
        return checked

    return decorate


def _validated_function(function: Any, rules: Sequence[Rule]) -> Any:
    signature = inspect.signature(function)
    annotations = {
        name: resolved_annotation(parameter.annotation, function.__globals__)
        for name, parameter in signature.parameters.items()
    }

    named = {name for rule in rules for name in rule.names()}
    free = [name not in named and not is_constrained(text) for name, text in annotations.items()]
    num_free = free.index(False) if False in free else len(free)
    accepted: dict[str, Any] | None = None

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        nonlocal accepted
        # The loop calls a schedule at every step with the same keyword arguments: they are checked once.
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
            annotations[item.name] = resolved_annotation(item.type, _globals_of(owner))
        declared = [rule for each in reversed(sources) for rule in each.__dict__.get("__rules__", ())]
        _check({name: getattr(self, name) for name in annotations}, annotations, declared)
        if after is not None:
            after(self)

    __post_init__.__validates__ = True  # type: ignore[attr-defined]
    part.__post_init__ = __post_init__
    part.__rules__ = tuple(rules)
    return part


def _globals_of(owner: type) -> Mapping[str, Any]:
    return vars(sys.modules[owner.__module__])


def resolved_annotation(annotation: Any, scope: Mapping[str, Any]) -> str:
    """Return the text of an annotation without the aliases of the module that it is written in."""

    def resolve(name: str) -> str | None:
        value = scope.get(name)
        return annotation_text(value) if get_origin(value) is not None or isinstance(value, UnionType) else None

    return "Any" if annotation is inspect.Parameter.empty else expanded(annotation_text(annotation), resolve)


def _check(arguments: Mapping[str, Any], annotations: Mapping[str, str], rules: Sequence[Rule]) -> None:
    problems = {
        name: value_problems(name, value, annotations[name])
        for name, value in arguments.items()
        if is_constrained(annotations[name])
    }
    wrong = frozenset(name for name, messages in problems.items() if messages)
    raise_if_any(
        *(message for messages in problems.values() for message in messages),
        *broken_rules(arguments, rules, skip=wrong),
    )


ALIASES: Final[Mapping[str, str]] = {
    name: repr(value) for name, value in list(globals().items()) if hasattr(value, "__metadata__")
}
"""The aliases of this module by name, with the text that they stand for."""
