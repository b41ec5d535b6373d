import logging

import pytest
import torch
from datasets import Dataset

from trainer.errors import DataError, RowError
from trainer.task.class_targets import Classes, ClassTarget


def classes(*labels: str) -> Classes:
    made = Classes()
    made.fit(labels, at_least=2)
    return made


def test_counts_of_each_split_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    splits = {"train": Dataset.from_dict({"label": [1, 1, 0]}), "test": Dataset.from_dict({"label": [0, 0]})}
    with caplog.at_level(logging.INFO):
        classes("cat", "dog").check(splits, "label")

    assert caplog.messages == ["train: targets of 2 classes: dog 2, cat 1", "test: targets of 2 classes: cat 2, dog 0"]


def test_labels_of_a_row_are_counted_one_by_one(caplog: pytest.LogCaptureFixture) -> None:
    rows = Dataset.from_dict({"labels": [[0, 1], [], [1]]}).select([0, 1, 2, 0])
    with caplog.at_level(logging.INFO):
        classes("cat", "dog").check({"train": rows}, "labels")

    assert caplog.messages == ["train: targets of 2 classes: dog 3, cat 2"]


def test_only_largest_and_smallest_of_many_classes_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    numbers = [number for number in range(30) for _ in range(30 - number)]
    with caplog.at_level(logging.INFO):
        classes(*(f"c{number:02}" for number in range(30))).check(
            {"train": Dataset.from_dict({"label": numbers})}, "label"
        )

    (message,) = caplog.messages
    assert message.startswith("train: targets of 30 classes: c00 30, c01 29, ")
    assert message.endswith("c09 21, ..., c20 10, c21 9, c22 8, c23 7, c24 6, c25 5, c26 4, c27 3, c28 2, c29 1")


def fit_class_target(*labels: str) -> ClassTarget:
    made = ClassTarget()
    made.fit(Dataset.from_dict({"label": list(labels)}))
    return made


def test_classes_are_the_sorted_labels() -> None:
    label = fit_class_target("dog", "cat", "dog")
    assert label.info_fields() == {
        "num_outputs": 2,
        "class_counts": [1, 2],
        "class_names": ["cat", "dog"],
        "num_train": 3,
    }
    assert label.encode(["dog", "cat"]) == [1, 0]
    target = label.to_tensor([1, 0])
    assert target.dtype == torch.int64
    assert target.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("known", "spelled"),
    [(("0", "1"), ("False", "True")), (("False", "True"), ("0", "1")), (("False", "True"), ("FALSE", "true"))],
)
def test_a_boolean_is_one_class_in_every_spelling(known: tuple[str, ...], spelled: tuple[str, ...]) -> None:
    assert fit_class_target(*known).encode(spelled) == [0, 1]


def test_only_booleans_have_other_spellings() -> None:
    with pytest.raises(RowError, match="does not occur in training, got 'True'"):
        fit_class_target("0", "1", "2").encode(["True"])
    with pytest.raises(RowError, match="does not occur in training, got 'True'"):
        fit_class_target("1", "true", "false").encode(["True"])


@pytest.mark.parametrize(
    ("names", "number"),
    [
        (("a", "b"), 0),
        (("US", "us"), 1),
        (("07", "7", "nan", "NaN"), 1),
        (("1_0", "10"), 0),
        (("B-PER", "I-PER", "O"), 0),
    ],
)
def test_names_that_are_probably_misread_are_warned_of(names: tuple[str, ...], number: int) -> None:
    assert len(classes(*names).check({}, "label")) == number


def test_state_restores_the_classes() -> None:
    other = ClassTarget()
    other.load_state_dict(fit_class_target("dog", "cat", "dog").state_dict())
    assert other.info_fields() == fit_class_target("dog", "cat", "dog").info_fields()
    assert other.encode(["dog"]) == [1]


def test_single_and_unknown_labels_are_errors() -> None:
    with pytest.raises(DataError, match="at least 2 different labels"):
        fit_class_target("dog", "dog")
    with pytest.raises(RowError, match="does not occur in training") as caught:
        fit_class_target("dog", "cat").encode(["cat", "cow"])
    assert caught.value.position == 1
    with pytest.raises(
        RowError, match=r"^label: does not occur in training, nor do 'ox', 'hen', got 'cow'\. "
    ) as caught:
        fit_class_target("dog", "cat").encode(["cat", "cow", "ox", "cow", "dog", "hen"])
    assert caught.value.position == 1


def test_macro_f1_shows_a_missed_rare_class() -> None:
    metrics = fit_class_target("dog", "cat").metrics()
    metrics.update(torch.tensor([[0.0, 1.0]] * 4), torch.tensor([1, 1, 1, 0]))
    values = {name: round(float(value), 4) for name, value in metrics.compute().items()}
    # F1 of cat is 0, of dog 2 * 3 / (2 * 3 + 1).
    assert values == {"accuracy": 0.75, "macro_f1": 0.4286}
