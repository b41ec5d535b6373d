"""Rules, and the check of a part's arguments when it is created."""

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import pytest
from annotated_types import Lt

from trainer.constraints import Count, NonEmptyStr, NonNegative, NonNegativeInt, Rule, validated
from trainer.errors import ConfigError


@pytest.mark.parametrize(
    ("condition", "arguments", "broken"),
    [
        ("dim % heads == 0", {"dim": 6, "heads": 4}, True),
        ("dim % heads == 0", {"dim": 6, "heads": 3}, False),
        ("dim % heads == 0", {"dim": 6}, False),
        ("dim % heads == 0", {"dim": 6, "heads": 0}, False),
        ("dim % heads == 0", {"dim": "x", "heads": 2}, False),
        ("not nesterov or momentum > 0", {"nesterov": True, "momentum": 0}, True),
        ("sorted(set(cutoffs)) == cutoffs and len(cutoffs) > 0", {"cutoffs": [2, 1]}, True),
        ("any(weight != 0 for weight in weights)", {"weights": [0, 0]}, True),
        ("all(isinstance(item, int) for item in items if item)", {"items": [1, None, 2]}, False),
        ("x is None or x[0] in (1, 2)", {"x": [3]}, True),
        ("(1 if x else 0) == 1", {"x": 0}, True),
        ("9 ** x > 0", {"x": 10**9}, False),
        ("__import__('os')", {}, False),
        ("x.__class__ == 0", {"x": 1}, False),
        ("(lambda: 0)()", {}, False),
    ],
)
def test_a_rule_is_evaluated_safely(condition: str, arguments: dict[str, Any], broken: bool) -> None:
    assert Rule(condition, "key", "is wrong").broken_by(arguments) is broken


def test_variables_of_generator_expressions_are_no_parameters() -> None:
    rule = Rule("all(x > low for x in items if x != high) and len(y) > 1", "low", "")
    assert rule.names() == {"items", "low", "high", "y"}
    assert Rule("any(x for x in items) or x", "x", "").names() == {"items", "x"}


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule("dmi > 0", "dim", "is wrong"), "names dmi, which is not a parameter. Did you mean dim"),
        (Rule("dim > 0", "dmi.x", "is wrong"), "names dmi"),
        (Rule("dim > 0", "dim", "is wrong for {heds}"), "names heds"),
        (Rule("dim > 0", "dim", "is wrong", "Use {dims[0]}"), "names dims"),
        (Rule("dim > 0", "dim", "is {wrong"), "cannot be read"),
        (Rule("any(x > 0 for x in dim) and x", "dim", "is wrong"), "names x"),
        (Rule("dim.real > 0", "dim", "is wrong"), r"cannot be read \(dim.real is not allowed here\)"),
        (Rule("dim == 1 or (lambda: dim)()", "dim", "is wrong"), "is not allowed here"),
        (Rule("[x for x in dim]", "dim", "is wrong"), "is not allowed here"),
        (Rule("max(dim, key=len)", "dim", "is wrong"), "is not allowed here"),
        (Rule("max(*dim)", "dim", "is wrong"), "is not allowed here"),
        (Rule("dim >", "dim", "is wrong"), "cannot be read"),
    ],
)
def test_a_rule_that_cannot_be_checked_is_refused_when_the_part_is_defined(rule: Rule, words: str) -> None:
    def make(dim: int, heads: int) -> int:
        return dim + heads

    class Part:
        dim: int
        heads: int

    for part in (make, Part):
        name, condition = part.__qualname__, re.escape(repr(rule.condition))
        with pytest.raises(TypeError, match=rf"{name}: the rule {condition} .*{words}"):
            validated(rule)(part)


Weights: TypeAlias = NonNegative | list[NonNegative] | None
DIVIDES = Rule("dim % heads == 0", key="heads", problem="must divide dim ({dim})", remedy="Use {dim}")


class Eager:
    @validated(DIVIDES)
    def __init__(self, dim: Count, heads: Count = 4, weight: Weights = None, other: float = math.inf) -> None:
        self.dim = dim


class Postponed:
    @validated(DIVIDES)
    def __init__(self, dim: "Count", heads: "Count" = 4, weight: "Weights" = None, other: "float" = math.inf) -> None:
        self.dim = dim


@pytest.mark.parametrize("part", [Eager, Postponed])
def test_part_is_checked_when_it_is_created(part: Any) -> None:
    assert part(8).dim == 8
    assert part(dim=8, weight=[0, 1]).dim == 8
    with pytest.raises(ConfigError) as caught:
        part(6)
    assert caught.value.messages == ("heads: must divide dim (6), got 4. Use 6.",)
    with pytest.raises(ConfigError) as caught:
        part(0, heads=0, weight=[-1])
    assert [message.split(":")[0] for message in caught.value.messages] == ["dim", "heads", "weight"]
    with pytest.raises(TypeError, match="dim"):
        part()


@dataclass(frozen=True, kw_only=True)
@validated(Rule("low <= high", key="low", problem="must not be above high ({high})"))
class Base:
    low: NonNegativeInt
    high: Count


@dataclass(frozen=True, kw_only=True)
class Derived(Base):
    name: NonEmptyStr


@dataclass(frozen=True, kw_only=True)
@validated(Rule("len(name) > 1", key="name", problem="must be longer"))
class Further(Derived):
    def __post_init__(self) -> None:
        assert self.low <= self.high


def test_a_dataclass_is_checked_with_its_bases() -> None:
    assert Derived(low=1, high=2, name="a").low == 1
    for part in (Derived, Further):
        with pytest.raises(ConfigError) as caught:
            part(low=3, high=2, name="")
        assert [message.split(":")[0] for message in caught.value.messages] == ["name", "low"]
    with pytest.raises(ConfigError, match="name: must be longer"):
        Further(low=1, high=2, name="a")


def test_arguments_are_checked_again_when_they_change() -> None:
    @validated(Rule("low < high", key="low", problem="must be less than high ({high})"))
    def make(step: int, *, low: NonNegative, high: NonNegative) -> float:
        return low + high + step

    assert [make(step, low=1, high=2) for step in range(3)] == [3, 4, 5]
    for low, high in ((-1, 2), (2, 1), (float("nan"), 2)):
        with pytest.raises(ConfigError, match="low: must"):
            make(3, low=low, high=high)
        assert make(3, low=1, high=2) == 6


LIMIT = 5


def test_a_limit_may_be_a_constant_of_the_module() -> None:
    def make(gamma: "Annotated[float, Lt(LIMIT)]") -> float:
        return gamma

    assert validated()(make)(3.0) == 3.0
    with pytest.raises(ConfigError, match="gamma: must be less than 5, got 9"):
        validated()(make)(9.0)
