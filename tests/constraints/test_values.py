"""The check of values against the text of an annotation."""

import ast
import math
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

import annotated_types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer import constraints
from trainer.constraints import annotations, descriptions, values
from trainer.constraints.declarations import find_builtin, meaning, read_annotation, resolve_annotation
from trainer.constraints.values import map_paths, paths_in

NAMES = {**vars(typing), **vars(annotated_types), **vars(constraints), "typing": meaning("typing")}


def parsed(text: str) -> object:
    """Return the annotation in a text, which stands in a module that imports all names."""
    return read_annotation(ast.Constant(text), lambda name: NAMES.get(name) or find_builtin(name))


def fits_type(value: Any, text: str) -> bool:
    return values.fits_type(value, parsed(text))


def value_problems(key: str, value: Any, text: str) -> list[str]:
    return values.value_problems(key, value, parsed(text))


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
        ("Time | None", ["4h", "1h30m", None], [4, "4", "4ep"]),
        ("Literal['a', 'b'] | None", ["a", None], ["c", 0]),
        ("Literal[1, True]", [1, True], [1.0, 2, False]),
        ("list[int]", [[], [1, 2]], [[1, "a"], 1, {"a": 1}, "12"]),
        ("list", [[1, "a"]], ["ab", {}]),
        ("Sequence[float] | Literal['auto'] | None", [[1, 2.5], "auto", None], ["autp", ["auto"]]),
        ("tuple[float, float]", [[0.9, 1]], [[0.9], [0.9, "x"], [1, 2, 3]]),
        ("tuple[int, ...]", [[], [1, 2, 3]], [["a"]]),
        ("tuple[int]", [[1]], [[], [1, 2, 3]]),
        ("tuple[()]", [[]], [[1]]),
        ("dict[str]", [{"a": 1}], [{1: 1}, []]),
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
        ("dict[str, int] | list[int]", "None"),
        ("list[int]", "None"),
        ("Mapping", "None"),
    ],
)
def test_annotation_of_the_values_of_a_mapping(annotation: str, inner: str) -> None:
    assert annotations.mapping_item(parsed(annotation)) == parsed(inner)


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
        ("list[Literal['a', 'b']]", "a list in which each item is one of a, b"),
        ("dict[str, int | None]", "a mapping in which each value is an integer or null"),
        ("list[dict[str, Any]]", "a list of mappings"),
        ("dict[str, list[str]]", "a mapping in which each value is a list of texts"),
        ("tuple[int]", "a list of 1: an integer"),
        ("tuple[()]", "an empty list"),
        ("list", "a list"),
        ("Tensor", "any value"),
    ],
)
def test_descriptions_of_annotations(annotation: str, words: str) -> None:
    assert descriptions.describe(parsed(annotation)) == words


def test_literals_and_forms() -> None:
    assert annotations.literals(parsed("Literal['a', 1] | list[Literal['b']]")) == ["a", "b"]
    assert "500st" in descriptions.forms(parsed("Duration | None"))
    assert "4h" in descriptions.forms(parsed("Time | None"))
    assert descriptions.forms(int) == ""


@pytest.mark.parametrize(
    ("annotation", "inside", "outside"),
    [
        ("Finite", [0, -3.4e38], [-3.5e38, math.inf, -math.inf, math.nan]),
        ("Positive", [1e-300, 1, 3.4e38], [3.5e38, 10**39, 0, -1.0, math.inf, math.nan]),
        ("PositiveOrInfinite", [1e-300, math.inf], [0, -1.0, math.nan]),
        ("NonNegative", [0, 0.0, 5.0], [-1e-9, math.inf, math.nan]),
        ("AtLeastOne", [1, 1.0, 7], [0, 0.999, -math.inf, math.inf, math.nan]),
        ("Probability", [0, 0.5, 1], [-1e-9, 1.0001, math.inf, math.nan]),
        ("BelowOne", [0, 0.5, 1 - 1e-16], [-1e-9, 1, 1.0, math.inf, math.nan]),
        ("Fraction", [1e-300, 0.999], [0.0, 1.0, -1.0, math.inf, math.nan]),
        ("PositiveToOne", [1e-300, 1], [0, 1.01]),
        ("Count", [1, 2**70, 10**400], [0, -1]),
        ("Probability | Count", [0.5, 7], [1.5]),
        ("NonNegativeInt", [0], [-1]),
        ("Seed", [0, 2**64 - 1], [-1, 2**64]),
        ("NonEmptyStr", ["a"], [""]),
        ("Annotated[list[int], Len(2, 2)]", [[1, 2]], [[], [1, 2, 3]]),
        ("Annotated[Duration, Gt(0)]", [1, "0.5ep"], [0, "0ep"]),
        ("Annotated[Time, Gt(0)]", ["1s", "0.5h"], ["0s", "0d0h"]),
        ("Annotated[float | None, Gt(0)]", [None, 1], [0]),
        ("typing.Optional[Positive]", [None, 1], [0]),
        ("Annotated[int, Ge(0)] | BelowOne", [7, 0.5], [-1, 1.0, 1.5]),
        ("Annotated[Positive, Ge(-1), Lt(5), Le(9)]", [4], [0, 5]),
        ("Annotated[int, MultipleOf(3), Ge(0)]", [0, 3], [4, -3]),
        ("Annotated[float, MultipleOf(0.5)]", [0, 1.5], [0.25, 10**400]),
        ("Annotated[str, MinLen(4)]", ["10ep"], ["3ep"]),
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
    annotation = parsed("DataFile | list[DataFile] | Mapping[str, DataFolder | None] | None")
    assert [(path, about.noun) for path, about, _ in paths_in(["a", "b"], annotation)] == [("a", "file"), ("b", "file")]
    assert [(path, about.noun, key) for path, about, key in paths_in({"x": "a", "y": None}, annotation)] == [
        ("a", "folder", ".x")
    ]
    assert map_paths(["a", "b"], annotation, lambda path, about: f"/{path}") == ["/a", "/b"]
    assert list(paths_in("a", str)) == []


class Spec(NamedTuple):
    """An annotation as text, and a reference for the values that it allows."""

    text: str
    allows: Callable[[Any], bool]


def is_number(value: Any) -> bool:
    return type(value) in (int, float)


def bounded(spec: Spec, low: int) -> Spec:
    """Limit the numbers of an annotation, and the length of everything else."""

    def allows(value: Any) -> bool:
        if is_number(value):
            return math.isfinite(value) and value >= low
        return not isinstance(value, str | list | dict) or len(value) >= 1

    text = f"Annotated[{spec.text}, Ge({low}), MinLen(1)]"
    return Spec(text, lambda value: spec.allows(value) and allows(value))


def literal(value: Any) -> Spec:
    return Spec(f"Literal[{value!r}]", lambda other: type(other) is type(value) and other == value)


def one_of(*specs: Spec) -> Spec:
    return Spec(" | ".join(spec.text for spec in specs), lambda value: any(spec.allows(value) for spec in specs))


def list_of(spec: Spec) -> Spec:
    allows = lambda value: isinstance(value, list) and all(map(spec.allows, value))  # noqa: E731
    return Spec(f"list[{spec.text}]", allows)


def pair_of(first: Spec, second: Spec) -> Spec:
    def allows(value: Any) -> bool:
        return isinstance(value, list) and len(value) == 2 and first.allows(value[0]) and second.allows(value[1])

    return Spec(f"tuple[{first.text}, {second.text}]", allows)


def mapping_of(spec: Spec) -> Spec:
    def allows(value: Any) -> bool:
        return isinstance(value, dict) and all(isinstance(key, str) and spec.allows(value[key]) for key in value)

    return Spec(f"Mapping[str, {spec.text}]", allows)


KNOWN = [
    Spec("int", lambda value: type(value) is int),
    Spec("float", is_number),
    Spec("bool", lambda value: type(value) is bool),
    Spec("str", lambda value: type(value) is str),
    Spec("None", lambda value: value is None),
    Spec("Tensor", lambda value: True),
    literal(1),
    literal("a"),
]
SPECS = st.recursive(
    st.sampled_from(KNOWN),
    lambda inner: (
        st.builds(bounded, inner, st.integers(-2, 2))
        | st.builds(one_of, inner, inner)
        | st.builds(list_of, inner)
        | st.builds(pair_of, inner, inner)
        | st.builds(mapping_of, inner)
    ),
    max_leaves=5,
)
NUMBERS = st.integers(-3, 3) | st.sampled_from([0.5, -0.0, math.inf, math.nan, 10**400, True])
VALUES = st.recursive(
    st.none() | NUMBERS | st.sampled_from(["", "a", "3ep"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", 1]), inner, max_size=2),
    max_leaves=4,
)


@given(SPECS, VALUES)
def test_a_value_has_a_problem_unless_the_reference_allows_it(spec: Spec, value: Any) -> None:
    problems = value_problems("key", value, spec.text)
    assert (problems == []) == spec.allows(value), spec.text
    assert all(problem.startswith("key") and ": must " in problem for problem in problems)


ODD = ["tuple", "tuple[()]", "dict[str]", "list[int, str]", "Literal", "Literal[()]", "Literal[Mode.A]", "Literal[[1]]"]
ODD += ["Annotated", "Annotated[int]", "Annotated[Mode, Note(Mode.A)]", "Annotated[int, Ge]", "Annotated[int, Ge()]"]
ODD += ["Annotated[int, Ge('a'), Lt(None)]", "Annotated[float, MultipleOf(0)]", "Annotated[float, MultipleOf(0.5)]"]
ODD += ["Annotated[str, Len('a', [])]", "Annotated[int, 3, *x]", "Union", "Union[()]", "Optional[int, str]", "...", "3"]
ODD += [
    "tuple[..., int]",
    "tuple[int, int, ...]",
    "tuple[*tuple[int, ...]]",
    "list[...]",
    "'list[int'",
    "lambda: 0",
    "x.",
]
ODD += ["int[str]", "None | None", "ClassVar[int]", "Callable[[int], str]", "Type[int]", "list[[int]]", "a.b[c](d)", ""]


@given(st.lists(st.sampled_from(ODD), min_size=1, max_size=2), st.sampled_from(["{}", "list[{}]", "{} | None"]), VALUES)
def test_no_annotation_raises_an_exception(odd: list[str], form: str, value: Any) -> None:
    text = form.format(" | ".join(odd))
    for annotation in (parsed(text), resolve_annotation(text, dict(NAMES))):
        assert isinstance(values.value_problems("key", value, annotation), list)
        assert descriptions.describe(annotation)
        assert values.map_paths(value, annotation, lambda path, about: path) is not Ellipsis
        annotations.is_constrained(annotation)
        annotations.mapping_item(annotation)
        annotations.literals(annotation)
