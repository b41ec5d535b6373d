import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.checks import check
from trainer.data.digests import INPUT, TARGET
from trainer.protocols import Measure

pairs = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), min_size=1, max_size=30)


def split(rows: list[tuple[int, int]]) -> Dataset:
    return Dataset.from_dict({INPUT: [row[0] for row in rows], TARGET: [row[1] for row in rows]})


def shares(splits: dict[str, list[tuple[int, int]]]) -> dict[str, dict[str, float]]:
    checked = check({name: split(rows) for name, rows in splits.items()}, {})
    return {name: {each.name: each.share for each in found} for name, found in checked.measures.items()}


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
    checked = check({"train": split([(1, 0), (2, 0)]), "validation": split([(3, 0), (2, 0)])}, {})

    assert checked.warnings() == [
        "validation: 50.0 % leaked, the first at position 1; they are known from another split: take them out of one"
    ]


def test_the_table_holds_what_the_task_measured_too() -> None:
    checked = check({"train": split([(1, 0)])}, {"train": [Measure("truncated", 0.25, 0.2, "raise task.max_length")]})

    assert checked.table() == (
        ["split", "rows", "duplicates", "conflicting", "truncated"],
        [["train", "1", "0.0 %", "0.0 %", "25.0 %"]],
    )
    assert checked.warnings() == ["train: 25.0 % truncated; raise task.max_length"]
