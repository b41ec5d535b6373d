"""Every kind of cell becomes the value of its role, or says why not."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.cells import (
    REMEDIES,
    ROLE_NOUNS,
    cell_parser,
    describe_incomplete_rows,
    is_number,
    parse_number,
    split_key,
)


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("1", 1.0), (" -2.5e3 ", -2500.0), (".5", 0.5), ("+7", 7.0), (3, 3.0), (True, 1.0), (Decimal("1.25"), 1.25),
        (None, None), ("", None), (" \t", None), (float("nan"), None), ("NaN", None),
    ],
)  # fmt: skip
def test_numbers_and_their_texts_are_numbers(cell: Any, value: float | None) -> None:
    assert parse_number(cell) == value


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("one", "expected a number, got 'one'"),
        ("1_000", "expected a number, got '1_000'"),
        ("1,5", "expected a number, got '1,5'"),
        ([1], "expected a number, got list"),
        ("-inf", "expected a finite number, got '-inf'"),
        (float("inf"), "expected a finite number, got inf"),
        ("x" * 99, "expected a number, got '" + "x" * 56 + "..."),
    ],
)
def test_what_is_no_number_is_refused(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match="expected a") as caught:
        parse_number(cell)

    assert str(caught.value) == message
    assert is_number(cell) == ("finite" in message)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_survives_its_text(value: float) -> None:
    assert parse_number(repr(value)) == parse_number(value) == value
    assert is_number(repr(value))


CELLS: list[tuple[str, Any, Any]] = [
    ("text", " a ", " a "),
    ("text", "  ", None),
    ("positive", 5, "5"),
    ("label", "", None),
    ("label", " ", " "),
    ("label", 1.0, "1"),
    ("labels", "b | a||b", ["b", "a"]),
    ("labels", ["b", 1, None], ["b", "1"]),
    ("labels", None, []),
    ("labels", "", []),
    ("words", "New York|is", ["New York", "is"]),
    ("words", [], None),
    ("words", "", None),
    ("words", ["你", "好"], ["你", "好"]),
    ("tags", ["B-A B", "O"], ["B-A B", "O"]),
    ("value", ["1.5", 2], [1.5, 2.0]),
    ("value", [[1, 2]], [1.0, 2.0]),
    ("value", ["1", ""], None),
    ("value", [[]], None),
    ("value", [None], None),
    ("score", "4.5", 4.5),
    ("score", None, None),
    ("image", "a.png", {"bytes": None, "path": "a.png"}),
    ("image", b"PNG", {"bytes": b"PNG", "path": None}),
    ("image", {"bytes": b"PNG", "path": "a.png"}, {"bytes": b"PNG", "path": "a.png"}),
    ("image", {"bytes": None, "path": None}, None),
    ("image", "", None),
]


@pytest.mark.parametrize(("role", "cell", "value"), CELLS)
def test_a_cell_becomes_the_value_of_its_role(role: str, cell: Any, value: Any) -> None:
    assert cell_parser(role, "|")(cell) == value


def test_a_space_separates_at_any_white_space() -> None:
    assert cell_parser("tags", " ")(" O  B-A\tO ") == ["O", "B-A", "O"]


@pytest.mark.parametrize(
    ("role", "cell", "message"),
    [
        ("text", ["a"], "expected a string, got list"),
        ("words", ["a", None], "one of the words or tags is empty"),
        ("words", ["a", ["b"]], "expected a string, got list"),
        ("tags", "O B-A", r"a tag contains white space, got 'O B-A'; check data\.list_separator"),
        ("value", ["x"], "expected a number, got 'x'"),
        ("score", "x", "expected a number, got 'x'"),
        ("image", 1.5j, "expected a string, got complex"),
    ],
)
def test_what_cannot_be_used_is_refused(role: str, cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        cell_parser(role, "|")(cell)


def test_every_role_has_a_converter_a_noun_and_a_remedy() -> None:
    assert (
        {role for role, _, _ in CELLS} | {"features", "text_pair", "negative"} == ROLE_NOUNS.keys() == REMEDIES.keys()
    )


def test_the_key_of_a_row_is_its_inputs_alone() -> None:
    assert split_key({"text": " a  b", "label": "x", "labels": ["y"], "value": [1.0], "score": 1.0}) == " a  b"
    assert split_key({"words": ["a", "b"], "tags": ["O", "O"]}) == "a b"
    assert split_key({"text": "a  b", "text_pair": "c"}) == split_key({"text": " a b", "text_pair": "c "}) == "a b\0c"
    assert split_key({"text": "a", "text_pair": "b c"}) != split_key({"text": "a b", "text_pair": "c"})
    assert split_key({"text": "anchor", "positive": "p", "negative": "n"}) == "anchor"
    assert split_key({"label": "x"}) == ""


def test_the_key_of_features_is_that_of_their_values() -> None:
    key = split_key({"features": {"a": 1.0, "b": None, "c": "x  y"}})

    assert key == split_key({"features": {"c": "x  y", "a": "1", "b": None}})
    assert key == split_key({"features": {"a": "1.0", "b": "", "c": "x  y"}})
    assert key != split_key({"features": {"b": 1.0, "a": None, "c": "x  y"}})


def test_the_key_of_an_image_is_that_of_its_content(tmp_path: Any) -> None:
    (tmp_path / "a.png").write_bytes(b"content")

    key = split_key({"image": {"bytes": None, "path": str(tmp_path / "a.png")}})

    assert key == split_key({"image": {"bytes": b"content", "path": "elsewhere.png"}})
    assert key != split_key({"image": {"bytes": b"other", "path": None}})


@pytest.mark.parametrize(
    ("roles", "text"),
    [
        (["text"], "rows without a text"),
        (["text", "label"], "rows without a text or a label"),
        (["text", "text_pair", "score"], "rows without a text, a second text or a score"),
        (["features", "value"], "rows without a value"),
        (["text", "labels"], "rows without a text"),
    ],
)
def test_what_a_row_lacks_is_said(roles: list[str], text: str) -> None:
    assert describe_incomplete_rows(roles) == text
