"""Relations between the arguments of one part, and the small expression language that they are written in."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from string import Formatter
from typing import Any, Final, TypeAlias

from trainer.errors import did_you_mean, format_error

_Expression: TypeAlias = Callable[[Mapping[str, object]], Any]
"""Returns the value of an expression, whatever its type, for the values of its names."""


@dataclass(frozen=True)
class Rule:
    """A relation between the arguments of one part.

    Attributes:
        condition: A Python expression over the parameters that must be true. It may use constants, arithmetic,
            comparisons, `and`, `or`, `not`, `in`, `if`/`else`, subscripts, generator expressions, and abs, all, any,
            int, float, isinstance, len, list, max, min, set, sorted, str and sum. A condition that
            cannot be evaluated, because an argument is absent or has another type, is treated as true.
        key: The parameter that the message is about, or `parameter.key` for a key of a mapping.
        problem: The problem, without a period; `{name}` stands for an argument.
        remedy: The remedy, likewise.
    """

    condition: str
    key: str
    problem: str
    remedy: str = ""

    def broken_by(self, arguments: Mapping[str, object]) -> bool:
        """Return whether the arguments do not meet the condition."""
        try:
            return not _compiled(self.condition)(arguments)
        except (LookupError, TypeError, ValueError, ArithmeticError):
            return False

    def names(self) -> frozenset[str]:
        """Return the parameters that the condition reads."""
        return _names_in(self.condition)

    def fault(self, parameters: Collection[str]) -> tuple[str, str] | None:
        """Return why the rule cannot be checked for a part with these parameters, and the remedy; None if it can."""
        rule = f"the rule {self.condition!r}"
        try:
            _compiled(self.condition)
            fields = [name for text in (self.problem, self.remedy) for _, name, *_ in Formatter().parse(text) if name]
        except (TypeError, ValueError, SyntaxError) as error:
            return f"{rule} cannot be read ({error})", ""
        key = self.key.partition(".")[0]
        # The YAML key of a parameter `x_steps` is `x`, and every part has the key `_target_`.
        keys = [] if key == "_target_" or f"{key}_steps" in parameters else [key]
        for name in dict.fromkeys([*sorted(self.names()), *keys, *map(_first_name, fields)]):
            if name not in parameters:
                return f"{rule} names {name}, which is not a parameter", did_you_mean(name, list(parameters))
        return None

    def message(self, arguments: Mapping[str, object], prefix: str = "") -> str:
        """Return the message for arguments that break the rule."""
        key = f"{prefix}{self.key}"
        problem, remedy = (text.format_map(arguments) for text in (self.problem, self.remedy))
        value: object = arguments
        for name in self.key.split("."):
            if not isinstance(value, Mapping) or name not in value:
                return format_error(key, problem, remedy)
            value = value[name]
        return format_error(key, problem, remedy, value=value)


def broken_rules(
    arguments: Mapping[str, object], rules: Sequence[Rule], *, prefix: str = "", skip: frozenset[str] = frozenset()
) -> list[str]:
    """Return a message for each broken rule.

    Args:
        arguments: The arguments of a part, by name.
        rules: The rules of the part.
        prefix: What precedes the names of arguments in messages, such as `loss.`.
        skip: Names of arguments that are wrong by themselves; rules that read one of them are not checked.
    """
    return [rule.message(arguments, prefix) for rule in rules if not rule.names() & skip and rule.broken_by(arguments)]


_FUNCTIONS: Final[dict[str, Callable[..., object]]] = {
    each.__name__: each
    for each in (abs, all, any, bool, dict, float, int, isinstance, len, list, max, min, set, sorted, str, sum)
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
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


@lru_cache(maxsize=256)
def _compiled(text: str) -> _Expression:
    return compile_expression(_parsed(text))


@lru_cache(maxsize=256)
def _names_in(text: str) -> frozenset[str]:
    return frozenset(_free_names(_parsed(text))) - _FUNCTIONS.keys()


def _first_name(field: str) -> str:
    """Return the argument that a field of a text, such as `split[test]`, reads."""
    return field.replace("[", ".").partition(".")[0]


def _free_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that an expression reads, without the variables of its generator expressions."""
    if isinstance(node, ast.Name):
        yield node.id
        return
    bound = {loop.target.id for loop in getattr(node, "generators", ()) if isinstance(loop.target, ast.Name)}
    for inner in ast.iter_child_nodes(node):
        yield from set(_free_names(inner)) - bound


def _and(left: _Expression, right: _Expression) -> _Expression:
    return lambda names: left(names) and right(names)


def _or(left: _Expression, right: _Expression) -> _Expression:
    return lambda names: left(names) or right(names)


def evaluate(node: ast.expr, names: Mapping[str, object]) -> object:
    """Return the value of an expression in the subset of Python that a `Rule` allows.

    Raises:
        LookupError: A name is unknown.
        TypeError: The expression is outside that subset, or an operator does not take its operands.
    """
    return compile_expression(node)(names)


def compile_expression(node: ast.expr) -> _Expression:
    """Return a function that evaluates an expression in the subset of Python that a `Rule` allows.

    Raises:
        TypeError: The expression is outside that subset.
    """
    match node:
        case ast.Constant(value=value):
            return lambda names: value
        case ast.Name(id=name):
            return lambda names: names[name] if name in names else _FUNCTIONS[name]
        case ast.BoolOp():
            join = _and if isinstance(node.op, ast.And) else _or
            return reduce(join, map(compile_expression, node.values))
        case ast.Compare():
            operands = list(map(compile_expression, (node.left, *node.comparators)))
            pairs = [(_OPERATORS[type(each)], *pair) for each, pair in zip(node.ops, pairwise(operands), strict=True)]
            return lambda names: all(compare(left(names), right(names)) for compare, left, right in pairs)
        case ast.BinOp() if type(node.op) in _OPERATORS:
            binary = _OPERATORS[type(node.op)]
            left, right = compile_expression(node.left), compile_expression(node.right)
            return lambda names: binary(left(names), right(names))
        case ast.UnaryOp() if type(node.op) in _OPERATORS:
            unary, operand = _OPERATORS[type(node.op)], compile_expression(node.operand)
            return lambda names: unary(operand(names))
        case ast.IfExp():
            test, body, orelse = map(compile_expression, (node.test, node.body, node.orelse))
            return lambda names: (body if test(names) else orelse)(names)
        case ast.List() | ast.Tuple() | ast.Set():
            make = list if isinstance(node, ast.List) else tuple
            items = list(map(compile_expression, node.elts))
            return lambda names: make(item(names) for item in items)
        case ast.Subscript():
            container, index = compile_expression(node.value), compile_expression(node.slice)
            return lambda names: container(names)[index(names)]
        case ast.Call(func=ast.Name(id=called), keywords=[]) if called in _FUNCTIONS:
            arguments = list(map(compile_expression, node.args))
            return lambda names: _FUNCTIONS[called](*(argument(names) for argument in arguments))
        case ast.GeneratorExp(generators=[ast.comprehension(target=ast.Name(id=variable), is_async=0) as loop]):
            values, element = compile_expression(loop.iter), compile_expression(node.elt)
            conditions = list(map(compile_expression, loop.ifs))
            return lambda names: [
                element(scope)
                for scope in ({**names, variable: value} for value in values(names))
                if all(condition(scope) for condition in conditions)
            ]
    raise TypeError(f"{ast.unparse(node)} is not allowed here")
