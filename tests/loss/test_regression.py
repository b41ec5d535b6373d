"""The shared parts of the losses over target values, and the properties that sums over the entries have."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support.loss_sums import check_parts_add_up, check_reference, outputs_and_values, value_and_gradient
from trainer.errors import RowError
from trainer.loss.huber import Huber
from trainer.loss.mae import Mae
from trainer.loss.mse import Mse
from trainer.loss.regression import count_tensor, prepare_values

LOSSES = {
    "mae": (Mae, F.l1_loss),
    "mse": (Mse, F.mse_loss),
    "huber": (partial(Huber, 1.0), F.huber_loss),
}
"""Each loss with torch's function."""
every_loss = pytest.mark.parametrize(("make", "reference"), LOSSES.values(), ids=LOSSES)


def test_shapes_that_torch_would_broadcast_raise():
    for shapes in [((3,), (3, 1)), ((3, 1), (3,)), ((3, 2), (3, 1)), ((1, 2), (3, 2))]:
        with pytest.raises(ValueError, match=r"^the output \(.*\) and the target \(.*\) must have one shape$"):
            prepare_values(*map(torch.zeros, shapes))


def test_values_are_at_least_float32():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        output, target = prepare_values(torch.ones(2, 3, dtype=dtype), torch.ones(2, 3))
        assert output.dtype == target.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_count_is_on_the_device_of_the_target():
    number = count_tensor(torch.empty(4, 2, device="meta"), 8)
    assert (number.shape, number.dtype, number.device.type) == ((), torch.int64, "meta")
    assert count_tensor(torch.empty(4, 2), 8).item() == 8


@every_loss
def test_value_and_gradient_match_torch(make, reference):
    for dtype in (torch.float32, torch.float64):
        output, target = outputs_and_values(dtype=dtype)
        check_reference(make(), partial(reference, reduction="sum"), output, target.to(dtype))


@every_loss
@settings(max_examples=20)
@given(split=st.integers(0, 24))
def test_loss_is_a_sum_over_entries(make, reference, split):
    output, target = outputs_and_values(dtype=torch.float64)
    loss = make()
    check_parts_add_up(loss, output, target, split)
    number = loss.num_targets(target)
    assert (number.shape, number.dtype, number.item()) == ((), torch.int64, 72)
    assert math.isclose((loss(output, target) / number).item(), reference(output, target.double()), rel_tol=1e-12)


@every_loss
def test_gradient(make, reference):
    output, target = outputs_and_values(rows=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: make()(values, target), output.requires_grad_())


@every_loss
def test_loss_without_rows_is_zero(make, reference):
    target = torch.zeros(0, 3)
    value, gradient = value_and_gradient(make(), torch.zeros(0, 3), target)
    assert value.item() == 0
    assert gradient.shape == (0, 3)
    assert make().num_targets(target).item() == 0


@every_loss
def test_half_precision_is_summed_in_float32(make, reference):
    for dtype in (torch.float16, torch.bfloat16):
        output, target = torch.full((8, 100), 1e4, dtype=dtype), torch.full((8, 100), -1e4)
        value, gradient = value_and_gradient(make(), output, target)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, make()(output.float(), target), rtol=1e-6, atol=0)
        assert torch.isfinite(gradient).all()


@every_loss
def test_wrong_shapes_and_targets_are_reported(make, reference):
    loss = make(num_outputs=3)
    with pytest.raises(ValueError, match="must have one shape"):
        loss(torch.zeros(4), torch.zeros(4, 1))
    target = torch.zeros(4, 3)
    loss.check(target)
    target[2, 1] = math.nan
    with pytest.raises(RowError, match=r"^target: must be finite, got nan") as error:
        loss.check(target)
    assert error.value.position == 2
    with pytest.raises(RowError, match=r"^target: must be .*float \(B, 3\)"):
        loss.check(torch.zeros(4, 2))
