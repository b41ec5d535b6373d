"""The check of values against the text of an annotation."""

import math
from typing import Any

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
def test_types_of_values(annotation: str, good: list[Any], bad: list[Any]) -> None:
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
def test_annotation_of_the_values_of_a_mapping(annotation: str, inner: str | None) -> None:
    assert mapping_item(annotation) == inner


@given(SCALARS, st.permutations(["int", "bool", "str", "None"]), st.integers(1, 4))
def test_a_union_is_any_of_its_members(value: Any, names: list[str], count: int) -> None:
    assert fits_type(value, " | ".join(names[:count])) == any(fits_type(value, name) for name in names[:count])


@given(st.lists(SCALARS, max_size=4), st.sampled_from(["int", "float", "str", "bool | None"]))
def test_a_list_fits_when_its_items_do(values: list[Any], item: str) -> None:
    assert fits_type(values, f"list[{item}]") == all(fits_type(value, item) for value in values)


@given(SCALARS)
def test_scalar_has_one_type_but_ints_are_also_floats(value: Any) -> None:
    fitting = [name for name in ("int", "float", "bool", "str", "None") if fits_type(value, name)]
    assert fitting == (["int", "float"] if type(value) is int else fitting[:1])


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
def test_descriptions_of_annotations(annotation: str, words: str) -> None:
    assert describe(annotation) == words


def test_literals_and_forms() -> None:
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
