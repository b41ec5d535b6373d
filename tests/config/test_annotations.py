from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config.annotations import expected, fits, forms, items, literals

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
    assert [value for value in good if not fits(value, annotation)] == []
    assert [value for value in bad if fits(value, annotation)] == []


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
    assert items(annotation) == inner


@given(SCALARS, st.permutations(["int", "bool", "str", "None"]), st.integers(1, 4))
def test_a_union_is_any_of_its_members(value: Any, names: list[str], count: int) -> None:
    assert fits(value, " | ".join(names[:count])) == any(fits(value, name) for name in names[:count])


@given(st.lists(SCALARS, max_size=4), st.sampled_from(["int", "float", "str", "bool | None"]))
def test_a_list_fits_when_its_items_do(values: list[Any], item: str) -> None:
    assert fits(values, f"list[{item}]") == all(fits(value, item) for value in values)


@given(SCALARS)
def test_exactly_one_scalar_kind_but_ints_are_floats(value: Any) -> None:
    kinds = [kind for kind in ("int", "float", "bool", "str", "None") if fits(value, kind)]
    assert kinds == (["int", "float"] if type(value) is int else kinds[:1])


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("int", "an integer"),
        ("float | None", "a number or null"),
        ("Literal['a', 'b'] | None", "one of a, b or null"),
        ("list[float] | Literal['auto']", "a list of numbers or auto"),
        ("tuple[float, float]", "a list of 2: a number, a number"),
        ("tuple[int, ...]", "a list of integers"),
        ("dict[str, int]", "a mapping to integers"),
        ("list[Literal['a', 'b']]", "a list of items, each one of a, b"),
        ("list", "a list"),
        ("Tensor", "any value"),
    ],
)
def test_words(annotation: str, words: str) -> None:
    assert expected(annotation) == words


def test_hints() -> None:
    assert literals("Literal['a', 1] | list[Literal['b']]") == ["a", "b"]
    assert "500st" in forms("Duration | None")
    assert forms("int") == ""
