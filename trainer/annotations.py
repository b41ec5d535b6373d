"""Annotations of parameters as text: their grammar, and the check of a value against one of them.

A text is enough, because `trainer.config` reads it from the source of a part that it does not import. Metadata of
`Annotated` is known by its name; the names of `trainer.constraints` stand for their definitions there.
"""

from __future__ import annotations

import ast
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Final, Literal, TypeAlias, get_origin

from trainer.durations import FORMS, parse
from trainer.errors import format_error
from trainer.rules import evaluate

_Bound: TypeAlias = tuple[Any, bool]
"""A limit of a number; True if the limit itself is excluded."""


@dataclass(frozen=True)
class PathTo:
    """Metadata: text is a path.

    Attributes:
        noun: What is at the path, for messages.
        from_cwd: A relative path starts at `run.cwd`.
        must_exist: A path that does not exist is an error.
        hub: `owner/name` may also be a name on the Hugging Face hub; only what cannot be such a name must exist.
    """

    noun: Literal["file", "folder", "file or folder"] = "file or folder"
    from_cwd: bool = True
    must_exist: bool = True
    hub: bool = False

    @property
    def words(self) -> str:
        """The words that follow "must be" for such a value."""
        return "a path" if self.must_exist and not self.hub else "a path or a name"


_METADATA: Final[dict[str, tuple[str, ...]]] = {
    "Gt": ("gt",),
    "Ge": ("ge",),
    "Lt": ("lt",),
    "Le": ("le",),
    "Interval": (),
    "MultipleOf": ("multiple_of",),
    "Len": ("min_length", "max_length"),
    "MinLen": ("min_length",),
    "MaxLen": ("max_length",),
    "AllowInfinity": (),
    "Note": ("text",),
    "PathTo": ("noun", "from_cwd", "must_exist", "hub"),
}
"""Classes of metadata, most of them of `annotated_types`, with their positional parameters."""

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


class _Metadata:
    """The metadata of one `Annotated`; of several limits on the same side, the last one counts."""

    def __init__(self) -> None:
        self.lower: _Bound | None = None
        self.upper: _Bound | None = None
        self.step: float | None = None
        self.has_range = False
        self.allows_infinity = False
        self.min_length = 0
        self.max_length: int | None = None
        self.notes: list[str] = []
        self.path: PathTo | None = None

    def add(self, name: str, values: Mapping[str, Any]) -> None:
        """Add the metadata of the class `name` with these arguments."""
        self.allows_infinity |= name == "AllowInfinity"
        self.has_range |= name in ("Gt", "Ge", "Lt", "Le", "Interval", "MultipleOf")
        for argument, value in values.items():
            match argument:
                case _ if value is None:
                    continue
                case "ge" | "gt":
                    self.lower = (value, argument == "gt")
                case "le" | "lt":
                    self.upper = (value, argument == "lt")
                case "multiple_of":
                    self.step = value
                case "min_length":
                    self.min_length = max(self.min_length, value)
                case "max_length":
                    self.max_length = value if self.max_length is None else min(self.max_length, value)
                case "text":
                    self.notes.append(value)


@lru_cache(maxsize=1)
def aliases() -> dict[str, str]:
    """Return the names that `trainer.constraints` gives to annotations, with the text that they stand for."""
    source = Path(__file__).with_name("constraints.py").read_text(encoding="utf-8")
    return {
        item.target.id: ast.unparse(item.value)
        for item in ast.parse(source).body
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and item.value is not None
    }


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
    """Return whether `annotation` allows values of this type, in range or not."""
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
    """Return whether `annotation` has metadata that this module knows."""
    nodes = (node for node in ast.walk(_parsed(annotation)) if isinstance(node, ast.Subscript))
    return any(_name(node.value) == "Annotated" and _metadata_calls(node) for node in nodes)


def paths_in(value: Any, annotation: str) -> Iterator[tuple[str, PathTo, str]]:
    """Yield each path in a value, its metadata, and its key in the value (`.key` in a mapping, else empty)."""
    yield from _paths(value, _parsed(annotation), None)


def map_paths(value: Any, annotation: str, change: Callable[[str, PathTo], str]) -> Any:
    """Return the value with each of its paths changed, in lists and mappings too."""
    changed = {path: change(path, about) for path, about, _ in paths_in(value, annotation)}
    return _replaced(value, changed)


def expand_aliases(annotation: str, resolve: Callable[[str], str | None]) -> str:
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
        return ast.Name(node.attr) if node.attr in aliases() else node

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
    return _Expansion(aliases().get).visit(_parse_text(annotation))  # type: ignore[no-any-return]


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


def _metadata_calls(node: ast.Subscript) -> list[ast.Call]:
    """Return the metadata of an `Annotated` that this module knows."""
    return [item for item in _arguments(node)[1:] if isinstance(item, ast.Call) and _name(item.func) in _METADATA]


def _metadata(node: ast.Subscript) -> _Metadata:
    metadata = _Metadata()
    for call in _metadata_calls(node):
        name = _name(call.func)
        values = dict(zip(_METADATA[name], (evaluate(argument, {}) for argument in call.args), strict=False))
        values |= {str(keyword.arg): evaluate(keyword.value, {}) for keyword in call.keywords}
        if name == "PathTo":
            metadata.path = metadata.path or PathTo(**values)
        else:
            metadata.add(name, values)
    return metadata


def _is_endless(arguments: Sequence[ast.expr]) -> bool:
    """Return whether a tuple's arguments allow any length."""
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


def _metadata_problems(value: Any, metadata: _Metadata) -> Iterator[str]:
    notes = "".join(f" ({note})" for note in metadata.notes)
    duration = parse(value) if isinstance(value, str) else None
    if duration is not None or (isinstance(value, int | float) and not isinstance(value, bool)):
        amount = value if duration is None else float(duration.amount)
        if problem := _number_problem(amount, metadata):
            yield problem + notes
    elif isinstance(value, str | list | tuple | Mapping):
        least, most = metadata.min_length, metadata.max_length
        if len(value) < least or (most is not None and len(value) > most):
            yield _length_problem(least, most, value) + notes


def _length_problem(least: int, most: int | None, value: Any) -> str:
    unit = f"{'character' if isinstance(value, str) else 'item'}{'' if most == 1 else 's'}"
    if least == 1 and most is None:
        return "must not be empty"
    if most is None:
        return f"must have at least {least} {unit}"
    return f"must have {least} {unit}" if least == most else f"must have {least} to {most} {unit}"


def _number_problem(value: float, metadata: _Metadata) -> str | None:
    lower, upper, step = metadata.lower, metadata.upper, metadata.step
    infinite = not math.isfinite(value) and not metadata.allows_infinity
    good = not (metadata.has_range and infinite) and value == value
    good = good and (lower is None or (value > lower[0] if lower[1] else value >= lower[0]))
    good = good and (upper is None or (value < upper[0] if upper[1] else value <= upper[0]))
    good = good and (step is None or (math.isfinite(value) and value % step == 0))
    if good or not metadata.has_range:
        return None
    limits = _limits(lower, upper)
    if step is not None:
        limits = f"{'a whole number' if step == 1 else f'a multiple of {step}'}{f', {limits}' if limits else ''}"
    finite = "finite" if infinite and (lower is None or upper is None) else ""
    return f"must be {' and '.join(filter(None, [finite, limits]))}"


def _limits(lower: _Bound | None, upper: _Bound | None) -> str:
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
        path = _metadata(node).path
        return path.words if path else _described(arguments[0])
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
        path = _metadata(node).path
        return "paths" if path is not None and path.words == "a path" else _plural(_arguments(node)[0])
    return _PLURALS.get(_name(node)) or f"items, each {_described(node)}"


def _paths(value: Any, node: ast.expr, about: PathTo | None, key: str = "") -> Iterator[tuple[str, PathTo, str]]:
    for alternative in _alternatives(node):
        if isinstance(alternative, ast.Subscript) and _name(alternative.value) == "Annotated":
            yield from _paths(value, _arguments(alternative)[0], _metadata(alternative).path or about, key)
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


def resolve_annotation(annotation: Any, scope: Mapping[str, Any]) -> str:
    """Return the text of an annotation without the aliases of the module that it is written in."""

    def resolve(name: str) -> str | None:
        if name not in scope:  # imported only for the type checker
            return aliases().get(name)
        value = scope[name]
        if isinstance(value, int | float):  # a constant of the module, such as the limit in `Lt(LIMIT)`
            return repr(value)
        return annotation_text(value) if get_origin(value) is not None or isinstance(value, UnionType) else None

    return "Any" if annotation is inspect.Parameter.empty else expand_aliases(annotation_text(annotation), resolve)
