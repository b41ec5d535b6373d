import math
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.annotations import (
    describe,
    fits_type,
    forms,
    literals,
    map_paths,
    mapping_item,
    paths_in,
    value_problems,
)
from trainer.constraints import Count, NonEmptyStr, NonNegative, NonNegativeInt, Rule, validated
from trainer.errors import ConfigError

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text())


@pytest.mark.parametrize(
    ("annotation", "good", "bad"),
    [
        ("int", [0, -3], [1.0, True, "1", None]),
        ("float", [0, 1e-3, -2.5], [True, "1e-3", None, [1.0]]),
        ("bool", [True, False], [0, 1, "true"]),
        ("str", ["", "a"], [1, None]),
        ("None", [None], [0, "", False]),
        ("int | None", [1, None], [1.5, "x"]),
        ("Duration", [3, "3ep", "10%"], [3.5, "3", -1, None]),
        ("Duration | None", ["3ep", None], ["3"]),
        ("Literal['a', 'b'] | None", ["a", None], ["c", 0]),
        ("Literal[1, True]", [1, True], [1.0, 2, False]),
        ("list[int]", [[], [1, 2]], [[1, "a"], 1, {"a": 1}, "12"]),
        ("list", [[1, "a"]], ["ab", {}]),
        ("Sequence[float] | Literal['auto'] | None", [[1, 2.5], "auto", None], ["autp", ["auto"]]),
        ("tuple[float, float]", [[0.9, 1]], [[0.9], [0.9, "x"], [1, 2, 3]]),
        ("tuple[int, ...]", [[], [1, 2, 3]], [["a"]]),
        ("dict[str, int]", [{}, {"a": 1}], [{"a": "b"}, {1: 1}, []]),
        ("Mapping[str, Any]", [{"a": object()}], [[], {1: 1}]),
        ("dict[str, list[int]]", [{"a": [1]}], [{"a": 1}]),
        ("'int | None'", [1, None], ["x"]),
        ("typing.Sequence[int]", [[1]], [["a"]]),
        ("Any", [1, None, "x", [], {}], []),
        ("Tensor", [1, None, "x"], []),
        ("Callable[[int], str]", [1, None, "x"], []),
    ],
)
def test_what_fits(annotation: str, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not fits_type(value, annotation)] == []
    assert [value for value in bad if fits_type(value, annotation)] == []


@pytest.mark.parametrize(
    ("annotation", "inner"),
    [
        ("Mapping[str, float]", "float"),
        ("dict[str, str | list[str] | None] | None", "str | list[str] | None"),
        ("dict[str, int] | list[int]", None),
        ("list[int]", None),
        ("Mapping", None),
    ],
)
def test_the_values_of_a_mapping(annotation: str, inner: str | None) -> None:
    assert mapping_item(annotation) == inner


@given(SCALARS, st.permutations(["int", "bool", "str", "None"]), st.integers(1, 4))
def test_a_union_is_any_of_its_members(value: Any, names: list[str], count: int) -> None:
    assert fits_type(value, " | ".join(names[:count])) == any(fits_type(value, name) for name in names[:count])


@given(st.lists(SCALARS, max_size=4), st.sampled_from(["int", "float", "str", "bool | None"]))
def test_a_list_fits_when_its_items_do(values: list[Any], item: str) -> None:
    assert fits_type(values, f"list[{item}]") == all(fits_type(value, item) for value in values)


@given(SCALARS)
def test_exactly_one_scalar_kind_but_ints_are_floats(value: Any) -> None:
    kinds = [kind for kind in ("int", "float", "bool", "str", "None") if fits_type(value, kind)]
    assert kinds == (["int", "float"] if type(value) is int else kinds[:1])


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("int", "an integer"),
        ("float | None", "a number or null"),
        ("Literal['a', 'b'] | None", "one of a, b or null"),
        ("list[float] | Literal['auto']", "a list of numbers or auto"),
        ("tuple[float, float]", "a list of 2 numbers"),
        ("tuple[int, ...]", "a list of integers"),
        ("dict[str, int]", "a mapping to integers"),
        ("list[Literal['a', 'b']]", "a list of items, each one of a, b"),
        ("list", "a list"),
        ("Tensor", "any value"),
    ],
)
def test_words(annotation: str, words: str) -> None:
    assert describe(annotation) == words


def test_hints() -> None:
    assert literals("Literal['a', 1] | list[Literal['b']]") == ["a", "b"]
    assert "500st" in forms("Duration | None")
    assert forms("int") == ""


@pytest.mark.parametrize(
    ("annotation", "inside", "outside"),
    [
        ("Finite", [0, -1e300], [math.inf, -math.inf, math.nan]),
        ("Positive", [1e-300, 1, 1e300], [0, -1.0, math.inf, math.nan]),
        ("PositiveOrInfinite", [1e-300, math.inf], [0, -1.0, math.nan]),
        ("NonNegative", [0, 0.0, 5.0], [-1e-9, math.inf, math.nan]),
        ("AtLeastOne", [1, 1.0, 7], [0, 0.999, -math.inf, math.inf, math.nan]),
        ("Probability", [0, 0.5, 1], [-1e-9, 1.0001, math.inf, math.nan]),
        ("BelowOne", [0, 0.5, 1 - 1e-16], [-1e-9, 1, 1.0, math.inf, math.nan]),
        ("Fraction", [1e-300, 0.999], [0.0, 1.0, -1.0, math.inf, math.nan]),
        ("PositiveToOne", [1e-300, 1], [0, 1.01]),
        ("Count", [1, 2**70], [0, -1]),
        ("NonNegativeInt", [0], [-1]),
        ("WholeNumber", [0, 2.0], [-1.0, 0.5, math.inf]),
        ("Seed", [0, 2**64 - 1], [-1, 2**64]),
        ("NonEmptyStr", ["a"], [""]),
        ("Annotated[list[int], Len(2, 2)]", [[1, 2]], [[], [1, 2, 3]]),
        ("Annotated[Duration, Gt(0)]", [1, "0.5ep"], [0, "0ep"]),
        ("Annotated[float | None, Gt(0)]", [None, 1], [0]),
        ("typing.Optional[Positive]", [None, 1], [0]),
        ("Annotated[int, Ge(0)] | BelowOne", [7, 0.5], [-1, 1.0, 1.5]),
    ],
)
def test_bounds_of_a_range(annotation: str, inside: list[Any], outside: list[Any]) -> None:
    assert [value_problems("key", value, annotation) for value in inside] == [[]] * len(inside)
    for value in outside:
        (message,) = value_problems("key", value, annotation)
        assert message.startswith("key: must ")
        assert message.endswith(f", got {value!r}.")


def test_metadata_inside_unions_lists_and_mappings() -> None:
    annotation = "float | list[NonNegative] | Literal['auto'] | None"
    assert value_problems("key", -1, annotation) == []
    assert value_problems("key", [1, -2, -2, -3], annotation) == [
        "key: must be at least 0, got -2.",
        "key: must be at least 0, got -3.",
    ]
    (message,) = value_problems("key", {"a": [2]}, "dict[str, tuple[BelowOne, ...]]")
    assert message.startswith("key.a: must be at least 0")
    assert value_problems("key", 1.5, "Annotated[float, Le(1), Note('a share')]") == [
        "key: must be at most 1 (a share), got 1.5."
    ]


def test_paths_of_a_value() -> None:
    annotation = "DataFile | list[DataFile] | Mapping[str, DataFolder | None] | None"
    assert [(path, about.noun) for path, about, _ in paths_in(["a", "b"], annotation)] == [("a", "file"), ("b", "file")]
    assert [(path, about.noun, key) for path, about, key in paths_in({"x": "a", "y": None}, annotation)] == [
        ("a", "folder", ".x")
    ]
    assert map_paths(["a", "b"], annotation, lambda path, about: f"/{path}") == ["/a", "/b"]
    assert list(paths_in("a", "str")) == []


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
def test_a_part_is_checked_when_it_is_made(part: Any) -> None:
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
