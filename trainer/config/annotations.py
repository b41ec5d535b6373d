"""Whether a value fits an annotation, decided from the annotation's text alone."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from trainer.config.duration import FORMS, parse

_SCALARS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("an integer", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "str": ("text", lambda value: isinstance(value, str)),
    "None": ("null", lambda value: value is None),
    "Duration": ("a duration", lambda value: parse(value) is not None),
}
_SEQUENCES = {"list": "a list", "Sequence": "a list", "tuple": "a list"}
_MAPPINGS = {"dict": "a mapping", "Mapping": "a mapping"}


def fits(value: Any, annotation: str) -> bool:
    """Whether `value` is one that `annotation` allows.

    The grammar: int, float, bool, str, None, Duration, `|`, Literal, list, Sequence, tuple, dict, Mapping, Any. An int
    is a float, a bool is no int. What lies outside the grammar cannot be judged, so everything fits it.
    """
    return _fits(value, _parsed(annotation))


def expected(annotation: str) -> str:
    """The values of `annotation` in words, after "must be"."""
    return _expected(_parsed(annotation))


def forms(annotation: str) -> str:
    """How a value of `annotation` is written where words do not say it; may be empty."""
    names = {node.id for node in ast.walk(_parsed(annotation)) if isinstance(node, ast.Name)}
    return FORMS if "Duration" in names else ""


def literals(annotation: str) -> list[str]:
    """The texts that the `Literal`s of `annotation` allow."""
    found = [node for node in ast.walk(_parsed(annotation)) if isinstance(node, ast.Subscript)]
    values = [value for node in found if _name(node.value) == "Literal" for value in _literal_values(node)]
    return [value for value in values if isinstance(value, str)]


def items(annotation: str) -> str | None:
    """The annotation of the values of the one mapping that `annotation` allows beside null; else None."""
    kinds = [node for node in _alternatives(_parsed(annotation)) if not isinstance(node, ast.Constant)]
    only = kinds[0] if len(kinds) == 1 else None
    if not isinstance(only, ast.Subscript) or _name(only.value) not in _MAPPINGS:
        return None
    return ast.unparse(_arguments(only)[1])


@lru_cache(maxsize=512)
def _parsed(annotation: str) -> ast.expr:
    expression = ast.parse(annotation, mode="eval").body
    if isinstance(expression, ast.Constant) and isinstance(expression.value, str):
        return ast.parse(expression.value, mode="eval").body
    return expression


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
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
    return [node]


def _fits(value: Any, node: ast.expr) -> bool:
    if isinstance(node, ast.BinOp):
        return any(_fits(value, alternative) for alternative in _alternatives(node))
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
    if name in _MAPPINGS:
        key, item = arguments
        return isinstance(value, Mapping) and all(_fits(k, key) and _fits(v, item) for k, v in value.items())
    if name not in _SEQUENCES:
        return True
    if not isinstance(value, list | tuple):
        return False
    endless = len(arguments) == 1 or (isinstance(arguments[-1], ast.Constant) and arguments[-1].value is Ellipsis)
    if name == "tuple" and not endless:
        return len(value) == len(arguments) and all(map(_fits, value, arguments))
    return all(_fits(item, arguments[0]) for item in value)


def _expected(node: ast.expr) -> str:
    if isinstance(node, ast.BinOp):
        return " or ".join(dict.fromkeys(_expected(alternative) for alternative in _alternatives(node)))
    if isinstance(node, ast.Subscript):
        return _expected_subscript(node)
    name = _name(node)
    if name in _SCALARS:
        return _SCALARS[name][0]
    return _SEQUENCES.get(name) or _MAPPINGS.get(name) or "any value"


def _expected_subscript(node: ast.Subscript) -> str:
    name, arguments = _name(node.value), _arguments(node)
    if name == "Literal":
        values = [str(value) for value in _literal_values(node)]
        return f"one of {', '.join(values)}" if len(values) > 1 else values[0]
    if name in _MAPPINGS | _SEQUENCES and _name(arguments[-1]) == "Any":
        return (_MAPPINGS | _SEQUENCES)[name]
    if name in _MAPPINGS:
        return f"a mapping to {_plural(arguments[1])}"
    if name == "tuple" and len(arguments) > 1 and not isinstance(arguments[-1], ast.Constant):
        return f"a list of {len(arguments)}: {', '.join(map(_expected, arguments))}"
    return f"a list of {_plural(arguments[0])}" if name in _SEQUENCES else "any value"


def _plural(node: ast.expr) -> str:
    plurals = {"int": "integers", "float": "numbers", "bool": "true or false", "str": "texts", "Any": "anything"}
    return plurals.get(_name(node)) or f"items, each {_expected(node)}"
