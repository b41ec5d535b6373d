from hashlib import blake2b

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.quality import (
    INPUT_DIGEST,
    TARGET_DIGEST,
    block_digests,
    digest_of_rows,
    measure_quality,
    row_digests,
)

Rows = list[tuple[int, int]]
"""(input digest, target digest) of each row."""

some_rows = st.lists(
    st.tuples(st.sampled_from(range(-(2**63), 2**63, 2**60 + 2**59)), st.integers(0, 2)), min_size=1, max_size=30
)


def dataset(rows: Rows) -> Dataset:
    return Dataset.from_dict({INPUT_DIGEST: [row[0] for row in rows], TARGET_DIGEST: [row[1] for row in rows]})


def test_digests_ignore_white_space_and_separate_inputs_from_targets() -> None:
    rows = {"text": ["a b", "a  b\n", "a c", "a b"], "label": ["x", "x", "x", "y"], "row": [1, 2, 3, 4]}
    digests = row_digests(rows, ("text", "label"))
    first, second, third, fourth = digests[INPUT_DIGEST]

    assert first == second == fourth != third
    first, second, third, fourth = digests[TARGET_DIGEST]
    assert first == second == third != fourth
    assert all(-(2**63) <= value < 2**63 for values in digests.values() for value in values)


def test_digests_are_those_that_old_runs_and_predictions_contain() -> None:
    rows = {"text": ["a b", "é\n"], "text_pair": ["", "c"], "label": ["x", "y"], "row": [1, 2]}
    digests = row_digests(rows, ("text", "text_pair", "label"))
    expected = {INPUT_DIGEST: [b"a b\0\0", "é\0c\0".encode()], TARGET_DIGEST: [b"x\0", b"y\0"]}
    assert digests == {
        name: [int.from_bytes(blake2b(each, digest_size=8).digest(), "big", signed=True) for each in contents]
        for name, contents in expected.items()
    }
    assert row_digests({"text": [], "row": []}, ("text",)) == {INPUT_DIGEST: [], TARGET_DIGEST: []}


def test_digests_separate_roles() -> None:
    roles = ("text", "text_pair")
    one = row_digests({"text": ["a"], "text_pair": ["bc"], "row": [1]}, roles)
    other = row_digests({"text": ["ab"], "text_pair": ["c"], "row": [1]}, roles)

    assert one[INPUT_DIGEST] != other[INPUT_DIGEST]
    assert one[TARGET_DIGEST] == [0]


def test_digests_of_features_images_and_values_depend_on_content() -> None:
    rows = {
        "features": [{"a": 1.0, "b": None}, {"b": None, "a": 1.0}, {"a": 2.0, "b": None}],
        "image": [{"bytes": b"x", "path": "1.png"}, {"bytes": b"x", "path": "2.png"}, {"bytes": None, "path": "3.png"}],
        "value": [[1.0], [1.0], [1.5]],
        "row": [1, 2, 3],
    }
    for roles in (("features", "value"), ("image", "value")):
        for first, second, third in row_digests(rows, roles).values():
            assert first == second != third


def test_equal_rows_have_equal_blocks_and_blocks_of_a_row_differ() -> None:
    raw = {INPUT_DIGEST: [5, 6, 5], TARGET_DIGEST: [1, 2, 1], "row": [10, 11, 12]}
    blocks = block_digests(raw, [0, 0, 1, 2, 2])

    assert blocks["row"] == [10, 10, 11, 12, 12]
    assert blocks[TARGET_DIGEST] == [1, 1, 2, 1, 1]
    inputs = blocks[INPUT_DIGEST]
    assert (inputs[0], inputs[2]) == (5, 6)
    assert inputs[:2] == inputs[3:]
    assert len(set(inputs)) == 3


@given(some_rows, some_rows)
def test_measures_equal_counts_by_hand(train: Rows, test: Rows) -> None:
    splits = {"train": dataset(train), "test": dataset(test)}
    report = measure_quality(splits, "class")
    shares = report.shares

    assert measure_quality(splits, "class", block_size=5) == report
    for name, rows in (("train", train), ("test", test)):
        inputs = [row[0] for row in rows]
        assert shares[name]["duplicates"] == pytest.approx(1 - len(set(inputs)) / len(inputs))
        conflicts = sum(len({t for i, t in rows if i == each}) - 1 for each in set(inputs))
        assert shares[name]["conflicting"] == pytest.approx(conflicts / len(rows))
    train_inputs = {row[0] for row in train}
    assert shares["test"]["leaked"] == pytest.approx(np.mean([row[0] in train_inputs for row in test]))
    assert "leaked" not in shares["train"]


def test_warning_names_the_first_leaked_row() -> None:
    report = measure_quality({"train": dataset([(1, 0), (2, 0)]), "validation": dataset([(3, 0), (2, 0)])}, "class")

    (warning,) = report.warnings()
    assert warning.startswith("validation: 50.0% leaked (1 row), the first at position 1; ")


def test_second_of_two_equal_rows_is_the_duplicate() -> None:
    report = measure_quality({"train": dataset([(1, 0), (2, 0), (1, 1)])}, "class")

    assert report.first == {("train", "duplicates"): 2, ("train", "conflicting"): 2}


def test_blank_texts_are_reported() -> None:
    (blank,) = row_digests({"text": ["  "], "row": [1]}, ("text",))[INPUT_DIGEST]
    report = measure_quality({"train": dataset([(1, 0), (blank, 0)])}, "class")

    assert report.shares["train"]["empty"] == 0.5
    (warning,) = report.warnings()
    assert warning.startswith("train: 50.0% empty (1 row), the first at position 1; ")


def test_different_numbers_for_equal_inputs_are_no_contradiction() -> None:
    rows = {"train": dataset([(1, 0), (1, 1)])}

    assert measure_quality(rows, "class").shares["train"]["conflicting"] == 0.5
    assert "conflicting" not in measure_quality(rows, "values").shares["train"]


def test_table_has_one_row_per_split() -> None:
    rows = dataset([(1, 0), (2, 0)]).add_column("truncated", [True, False])

    assert measure_quality({"train": rows, "test": rows.select([1])}, "class").table() == (
        ["split", "rows", "duplicates", "conflicting", "empty", "truncated", "leaked"],
        [
            ["train", "2", "0.0%", "0.0%", "0.0%", "50.0%", "-"],
            ["test", "1", "0.0%", "0.0%", "0.0%", "0.0%", "100.0%"],
        ],
    )


def test_digest_of_rows_depends_on_inputs_targets_and_order() -> None:
    digests = {digest_of_rows(dataset(rows)) for rows in ([(1, 0), (2, 0)], [(2, 0), (1, 0)], [(1, 0), (2, 1)])}

    assert len(digests) == 3
    assert digest_of_rows(dataset([(1, 0), (2, 0)])) in digests
