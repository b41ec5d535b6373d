import pytest
import torch

from trainer.errors import ConfigError
from trainer.loss.features import counts_of_classes, feature_rows


def test_counts_are_the_training_targets_or_one_each():
    assert counts_of_classes(3, [5, 0, 2]) == [5, 0, 2]
    assert counts_of_classes(None, [5, 0, 2]) == [5, 0, 2]
    assert counts_of_classes(3, None) == [1, 1, 1]


@pytest.mark.parametrize(
    ("num_outputs", "counts", "message"),
    [
        (None, None, r"^_target_: needs a task that knows its classes\. Use loss=cross_entropy\.$"),
        (1, [4], r"^_target_: needs at least two classes, got 1\.$"),
        (0, None, r"^_target_: needs at least two classes, got 0\.$"),
    ],
)
def test_without_two_classes_there_is_nothing_to_score(num_outputs, counts, message):
    with pytest.raises(ConfigError, match=message):
        counts_of_classes(num_outputs, counts)


@pytest.mark.parametrize("leading", [(), (4,), (2, 3), (0,), (2, 0)])
def test_leading_axes_are_flattened(leading):
    output, target = torch.randn(*leading, 5), torch.randint(9, leading)
    rows, classes = feature_rows(output, target, 5)
    assert torch.equal(rows, output.reshape(-1, 5))
    assert torch.equal(classes, target.reshape(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rows_are_at_least_float32(dtype):
    rows, _ = feature_rows(torch.zeros(2, 5, dtype=dtype), torch.zeros(2, dtype=torch.int64), 5)
    assert rows.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize(("output", "target"), [((4, 5), (4, 1)), ((4, 5), (3,)), ((4, 6), (4,)), ((5,), (5,))])
def test_shapes_that_do_not_fit(output, target):
    with pytest.raises(ValueError, match=rf"\({output[0]},"):
        feature_rows(torch.zeros(output), torch.zeros(target, dtype=torch.int64), 5)
