import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from trainer.errors import RowError
from trainer.loss.mae import Mae


def outputs_and_values(rows: int = 24, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    output = 3 * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    target = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return output.to(dtype), target.float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_torchs(dtype):
    output, target = outputs_and_values(dtype=dtype)
    ours, theirs = output.clone().requires_grad_(), output.clone().requires_grad_()
    value = Mae()(ours, target)
    expected = F.l1_loss(theirs, target.to(dtype), reduction="sum")
    value.backward()
    expected.backward()
    assert value.shape == ()
    assert value.dtype == dtype
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


def test_sum_over_number_of_targets_is_torchs_mean():
    output, target = outputs_and_values(dtype=torch.float64)
    loss = Mae()
    count = loss.num_targets(target)
    assert (count.shape, count.dtype, count.item()) == ((), torch.int64, 72)
    assert math.isclose((loss(output, target) / count).item(), F.l1_loss(output, target.double()).item(), rel_tol=1e-12)


@given(split=st.integers(0, 24))
def test_micro_batches_add_up(split):
    output, target = outputs_and_values(dtype=torch.float64)
    loss = Mae()
    parts = loss(output[:split], target[:split]) + loss(output[split:], target[split:])
    assert math.isclose(parts.item(), loss(output, target).item(), rel_tol=1e-13)
    assert loss.num_targets(target[:split]) + loss.num_targets(target[split:]) == loss.num_targets(target)


def test_gradient_in_float64():
    output, target = outputs_and_values(rows=5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: Mae()(values, target), output.requires_grad_())


def test_without_rows_it_is_zero():
    output, target = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 3)
    value = Mae()(output, target)
    value.backward()
    assert value.item() == 0
    assert output.grad.shape == (0, 3)
    assert Mae().num_targets(target).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    output, target = torch.full((8, 100), 1e4, dtype=dtype, requires_grad=True), torch.full((8, 100), -1e4)
    value = Mae()(output, target)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, Mae()(output.float(), target))
    assert torch.isfinite(value)
    assert torch.isfinite(output.grad).all()


def test_shapes_that_would_be_broadcast_are_refused():
    with pytest.raises(ValueError, match="must have one shape"):
        Mae()(torch.zeros(4), torch.zeros(4, 1))


def test_a_target_at_fault_is_named():
    loss = Mae(num_outputs=3)
    target = torch.zeros(4, 3)
    loss.check(target)
    target[2, 1] = math.nan
    with pytest.raises(RowError, match=r"^target: must be finite, got nan") as caught:
        loss.check(target)
    assert caught.value.position == 2
    with pytest.raises(RowError, match=r"^target: must be values, float \(B, 3\)"):
        loss.check(torch.zeros(4, 2))
