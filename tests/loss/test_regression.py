import pytest
import torch

from trainer.loss.regression import count, pair


@pytest.mark.parametrize("shapes", [((3,), (3, 1)), ((3, 1), (3,)), ((3, 2), (3, 1)), ((1, 2), (3, 2))])
def test_shapes_that_torch_would_broadcast_are_refused(shapes):
    output, target = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match=r"^the output \(.*\) and the target \(.*\) must have one shape$"):
        pair(output, target)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_both_get_the_type_in_which_the_sum_is_made(given, used):
    output, target = pair(torch.ones(2, 3, dtype=given), torch.ones(2, 3))
    assert output.dtype == target.dtype == used


def test_a_count_is_made_where_the_target_is():
    number = count(torch.empty(4, 2, device="meta"), 8)
    assert (number.shape, number.dtype, number.device.type) == ((), torch.int64, "meta")
    assert count(torch.empty(4, 2), 8).item() == 8
