import logging

import pytest
from datasets import Dataset

from trainer.task.class_targets import Classes


def classes(*labels: str) -> Classes:
    made = Classes()
    made.fit(labels, at_least=2)
    return made


def test_the_counts_of_each_split_are_told(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": Dataset.from_dict({"label": [1, 1, 0]}), "test": Dataset.from_dict({"label": [0, 0]})}
    with caplog.at_level(logging.INFO):
        classes("cat", "dog").log_counts(splits, "label")

    assert caplog.messages == ["train: targets of 2 classes: dog 2, cat 1", "test: targets of 2 classes: cat 2, dog 0"]


def test_several_labels_of_a_row_are_counted_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"labels": [[0, 1], [], [1]]}).select([0, 1, 2, 0])
    with caplog.at_level(logging.INFO):
        classes("cat", "dog").log_counts({"train": rows}, "labels")

    assert caplog.messages == ["train: targets of 2 classes: dog 3, cat 2"]


def test_of_many_classes_the_largest_and_the_smallest_are_told(caplog: pytest.LogCaptureFixture) -> None:
    numbers = [number for number in range(30) for _ in range(30 - number)]
    with caplog.at_level(logging.INFO):
        classes(*(f"c{number:02}" for number in range(30))).log_counts(
            {"train": Dataset.from_dict({"label": numbers})}, "label"
        )

    (told,) = caplog.messages
    assert told.startswith("train: targets of 30 classes: c00 30, c01 29, ")
    assert told.endswith("c09 21, ..., c20 10, c21 9, c22 8, c23 7, c24 6, c25 5, c26 4, c27 3, c28 2, c29 1")
