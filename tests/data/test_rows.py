"""Splits follow from texts alone, and places survive the round trip through one integer."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.cells import as_text
from trainer.data.splits import assign_split, normalize_whitespace, row_id, split_row_id

SHARES = {"validation": 0.1, "test": 0.2}


def test_shares_are_met_and_known_texts_stay_where_they_are() -> None:
    splits = Counter(assign_split(f"text number {index}", SHARES) for index in range(20_000))

    assert splits == {"train": 14126, "validation": 1967, "test": 3907}


@given(st.text(), st.sampled_from([" ", "\n", "\t ", "\u3000", "\r\n"]))
def test_white_space_moves_no_text(text: str, space: str) -> None:
    assert assign_split(space + text.replace(" ", space) + space, SHARES) == assign_split(text, SHARES)
    assert normalize_whitespace(normalize_whitespace(text)) == normalize_whitespace(text)


@given(st.text())
def test_a_larger_last_share_takes_from_train_alone(text: str) -> None:
    before, after = assign_split(text, SHARES), assign_split(text, {"validation": 0.1, "test": 0.5})

    assert after == before or (before, after) == ("train", "test")


def test_no_share_takes_nothing() -> None:
    assert {assign_split(str(index), {"validation": 0.0}) for index in range(1000)} == {"train"}


@given(st.integers(0, 2**23 - 1), st.integers(1, 2**40 - 1))
def test_a_place_is_one_int64(file: int, record: int) -> None:
    assert 0 < row_id(file, record) < 2**63
    assert split_row_id(row_id(file, record)) == (file, record)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("None", "None"),
        ("", ""),
        (" 好 ", " 好 "),
        (7, "7"),
        (2**70, str(2**70)),
        (True, "1"),
        (False, "0"),
        (1.0, "1"),
        (0.5, "0.5"),
        (float("inf"), "inf"),
        (float("nan"), None),
        (None, None),
    ],
)
def test_cells_become_strings(value: object, text: str | None) -> None:
    assert as_text(value) == text


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", "\ud83d"])
def test_what_is_no_text_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"expected a string|surrogate"):
        as_text(value)
