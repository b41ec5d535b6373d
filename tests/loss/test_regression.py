import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support.loss_sums import check_parts_add_up, outputs_and_values, value_and_gradient
from trainer.errors import RowError
from trainer.loss.huber import Huber
from trainer.loss.mae import Mae
from trainer.loss.mse import Mse
from trainer.loss.regression import count, pair

SUMS = {
    "mae": (Mae, F.l1_loss),
    "mse": (Mse, F.mse_loss),
    "huber": (partial(Huber, 1.0), F.huber_loss),
}
"""The losses that are sums over the entries, and torch's."""
every_sum = pytest.mark.parametrize(("make", "torchs"), SUMS.values(), ids=SUMS)


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


@every_sum
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_torchs(make, torchs, dtype):
    output, target = outputs_and_values(dtype=dtype)
    value, gradient = value_and_gradient(make(), output, target)
    expected, theirs = value_and_gradient(partial(torchs, reduction="sum"), output, target.to(dtype))
    assert value.shape == ()
    assert value.dtype == dtype
    assert torch.equal(value, expected)
    assert torch.equal(gradient, theirs)


@every_sum
def test_sum_over_number_of_targets_is_torchs_mean(make, torchs):
    output, target = outputs_and_values(dtype=torch.float64)
    loss = make()
    number = loss.num_targets(target)
    assert (number.shape, number.dtype, number.item()) == ((), torch.int64, 72)
    mean = torchs(output, target.double()).item()
    assert math.isclose((loss(output, target) / number).item(), mean, rel_tol=1e-12)


@every_sum
@given(split=st.integers(0, 24))
def test_micro_batches_add_up(make, torchs, split):
    check_parts_add_up(make(), *outputs_and_values(dtype=torch.float64), split)


@every_sum
def test_gradient_in_float64(make, torchs):
    output, target = outputs_and_values(rows=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: make()(values, target), output.requires_grad_())


@every_sum
def test_without_rows_it_is_zero(make, torchs):
    target = torch.zeros(0, 3)
    value, gradient = value_and_gradient(make(), torch.zeros(0, 3), target)
    assert value.item() == 0
    assert gradient.shape == (0, 3)
    assert make().num_targets(target).item() == 0


@every_sum
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(make, torchs, dtype):
    output, target = torch.full((8, 100), 1e4, dtype=dtype), torch.full((8, 100), -1e4)
    value, gradient = value_and_gradient(make(), output, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, make()(output.float(), target))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@every_sum
def test_sums_refuse_shapes_that_would_be_broadcast(make, torchs):
    with pytest.raises(ValueError, match="must have one shape"):
        make()(torch.zeros(4), torch.zeros(4, 1))


@every_sum
def test_a_target_at_fault_is_named(make, torchs):
    loss = make(num_outputs=3)
    target = torch.zeros(4, 3)
    loss.check(target)
    target[2, 1] = math.nan
    with pytest.raises(RowError, match=r"^target: must be finite, got nan") as caught:
        loss.check(target)
    assert caught.value.position == 2
    with pytest.raises(RowError, match=r"^target: must be values, float \(B, 3\)"):
        loss.check(torch.zeros(4, 2))
