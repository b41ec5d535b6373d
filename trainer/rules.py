"""Relations between the arguments of one part, and the small expression language that they are written in."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from trainer.errors import format_error


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
        """Return whether the arguments do not meet the condition."""
        try:
            return not evaluate(_condition(self.condition), arguments)
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


def evaluate(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the value of an expression in the subset of Python that a `Rule` allows.

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
                result = evaluate(operand, names)
                if bool(result) != is_and:
                    break
            return result
        case ast.Compare():
            left = evaluate(node.left, names)
            for comparison, operand in zip(node.ops, node.comparators, strict=True):
                right = evaluate(operand, names)
                if not _OPERATORS[type(comparison)](left, right):
                    return False
                left = right
            return True
        case ast.BinOp():
            return _OPERATORS[type(node.op)](evaluate(node.left, names), evaluate(node.right, names))
        case ast.UnaryOp():
            return _OPERATORS[type(node.op)](evaluate(node.operand, names))
        case ast.IfExp():
            return evaluate(node.body if evaluate(node.test, names) else node.orelse, names)
        case ast.List() | ast.Tuple() | ast.Set():
            items = [evaluate(item, names) for item in node.elts]
            return items if isinstance(node, ast.List) else tuple(items)
        case ast.Subscript():
            return evaluate(node.value, names)[evaluate(node.slice, names)]
        case ast.Call(func=ast.Name(id=function), keywords=[]) if function in _FUNCTIONS:
            return _FUNCTIONS[function](*(evaluate(argument, names) for argument in node.args))
        case ast.GeneratorExp(generators=[ast.comprehension(target=ast.Name(id=name)) as loop]):
            scopes = ({**names, name: item} for item in evaluate(loop.iter, names))
            return [
                evaluate(node.elt, scope)
                for scope in scopes
                if all(evaluate(condition, scope) for condition in loop.ifs)
            ]
    raise TypeError(f"{ast.unparse(node)} is not allowed here")
