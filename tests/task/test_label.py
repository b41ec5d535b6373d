import pytest
import torch
from datasets import Dataset

from trainer.errors import DataError, RowError
from trainer.task.class_targets import ClassTarget


def learnt(*labels: str) -> ClassTarget:
    made = ClassTarget()
    made.fit(Dataset.from_dict({"label": list(labels)}))
    return made


def test_classes_are_the_sorted_labels_and_targets_their_numbers() -> None:
    label = learnt("dog", "cat", "dog")
    assert label.info_fields() == {"num_outputs": 2, "class_counts": [1, 2], "num_train": 3}
    assert label.encode(["dog", "cat"]) == [1, 0]
    target = label.to_tensor([1, 0])
    assert target.dtype == torch.int64
    assert target.tolist() == [1, 0]


def test_what_was_learnt_goes_on_in_another() -> None:
    other = ClassTarget()
    other.load_state_dict(learnt("dog", "cat", "dog").state_dict())
    assert other.info_fields() == learnt("dog", "cat", "dog").info_fields()
    assert other.encode(["dog"]) == [1]


def test_one_label_is_no_choice_and_a_new_one_has_no_class() -> None:
    with pytest.raises(DataError, match="at least 2 different labels"):
        learnt("dog", "dog")
    with pytest.raises(RowError, match="does not occur in training") as caught:
        learnt("dog", "cat").encode(["cat", "cow"])
    assert caught.value.position == 1
    with pytest.raises(
        RowError, match=r"^label: does not occur in training, nor do 'ox', 'hen', got 'cow'\. "
    ) as caught:
        learnt("dog", "cat").encode(["cat", "cow", "ox", "cow", "dog", "hen"])
    assert caught.value.position == 1


def test_frequent_classes_do_not_hide_rare_ones() -> None:
    metrics = learnt("dog", "cat").metrics()
    metrics.update(torch.tensor([[0.0, 1.0]] * 4), torch.tensor([1, 1, 1, 0]))
    found = {name: round(float(value), 4) for name, value in metrics.compute().items()}
    # F1 of cat is 0, of dog 2 * 3 / (2 * 3 + 1).
    assert found == {"accuracy": 0.75, "macro_f1": 0.4286}
