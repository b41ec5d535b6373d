import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.quality import INPUT_DIGEST, TARGET_DIGEST, measure_quality, row_digests

pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=30)


def split(rows: list[tuple[int, int]]) -> Dataset:
    return Dataset.from_dict({INPUT_DIGEST: [row[0] for row in rows], TARGET_DIGEST: [row[1] for row in rows]})


def shares(splits: dict[str, list[tuple[int, int]]]) -> dict[str, dict[str, float]]:
    return measure_quality({name: split(rows) for name, rows in splits.items()}).shares


@given(pairs, pairs)
def test_measures_are_the_counts_by_hand(train: list[tuple[int, int]], test: list[tuple[int, int]]) -> None:
    found = shares({"train": train, "test": test})

    for name, rows in (("train", train), ("test", test)):
        inputs = [row[0] for row in rows]
        assert found[name]["duplicates"] == pytest.approx(1 - len(set(inputs)) / len(inputs))
        conflicts = sum(len({t for i, t in rows if i == each}) - 1 for each in set(inputs))
        assert found[name]["conflicting"] == pytest.approx(conflicts / len(rows))
    known = {row[0] for row in train}
    assert found["test"]["leaked"] == pytest.approx(np.mean([row[0] in known for row in test]))
    assert "leaked" not in found["train"]


def test_a_leak_names_its_first_row() -> None:
    checked = measure_quality({"train": split([(1, 0), (2, 0)]), "validation": split([(3, 0), (2, 0)])})

    assert checked.warnings() == [
        "validation: 50.0 % leaked, the first at position 1; inputs that are also in another split: "
        "remove them from one of the two"
    ]


def test_the_second_of_two_equal_rows_is_the_duplicate() -> None:
    checked = measure_quality({"train": split([(1, 0), (2, 0), (1, 1)])})

    assert checked.first == {("train", "duplicates"): 2, ("train", "conflicting"): 2}


def test_empty_texts_are_found() -> None:
    (blank,) = row_digests({"text": ["  "], "row": [1]}, ("text",))[INPUT_DIGEST]
    checked = measure_quality({"train": split([(1, 0), (blank, 0)])})

    assert checked.shares["train"]["empty"] == 0.5
    assert checked.warnings() == [
        "train: 50.0 % empty, the first at position 1; texts without any character but white space: remove them"
    ]


def test_the_table_has_a_split_a_row() -> None:
    rows = split([(1, 0), (2, 0)]).add_column("truncated", [True, False])

    assert measure_quality({"train": rows, "test": rows.select([1])}).table() == (
        ["split", "rows", "duplicates", "conflicting", "empty", "truncated", "leaked"],
        [
            ["train", "2", "0.0 %", "0.0 %", "0.0 %", "50.0 %", "-"],
            ["test", "1", "0.0 %", "0.0 %", "0.0 %", "0.0 %", "100.0 %"],
        ],
    )
