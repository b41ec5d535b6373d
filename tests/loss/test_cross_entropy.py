import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from trainer.errors import ConfigError
from trainer.loss.cross_entropy import CrossEntropy

COUNTS = [50, 30, 0, 15, 5]
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.5]


def logits_and_targets(rows: int = 64, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = 4 * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (rows,), generator=generator)
    target[::7] = -100
    return logits.to(dtype), target


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_torchs(dtype, weight, label_smoothing):
    logits, target = logits_and_targets(dtype=dtype)
    loss = CrossEntropy(weight, label_smoothing, -100, COUNTS)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()

    value = loss(ours, target)
    expected = F.cross_entropy(
        theirs,
        target,
        None if weight is None else torch.tensor(weight, dtype=dtype),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    value.backward()
    expected.backward()

    assert value.shape == ()
    assert value.dtype == dtype
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


def test_sum_over_number_of_targets_is_torchs_mean():
    logits, target = logits_and_targets()
    loss = CrossEntropy(None, 0.1, -100)
    expected = F.cross_entropy(logits, target, label_smoothing=0.1)
    assert torch.allclose(loss(logits, target) / loss.num_targets(target), expected, rtol=1e-6, atol=0)


def test_number_of_targets_leaves_the_ignored_out():
    count = CrossEntropy(None, 0.0, 7).num_targets(torch.tensor([7, 0, 1, 7, -100]))
    assert count.shape == ()
    assert count.item() == 3


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHTS, "auto"])
@pytest.mark.parametrize("rows", [0, 4])
def test_without_targets_it_is_zero(rows, weight, label_smoothing):
    logits = torch.randn(rows, 5, requires_grad=True)
    target = torch.full((rows,), -100)
    loss = CrossEntropy(weight, label_smoothing, -100, COUNTS)
    value = loss(logits, target)
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert loss.num_targets(target).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saturated_logits(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    value = CrossEntropy(None, 0.0, -100)(logits, torch.tensor([0, 1]))
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == logits[0, 0].item() - logits[0, 1].item()
    assert torch.equal(logits.grad, torch.tensor([[0, 0, 0], [1, -1, 0]], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits, target = logits_and_targets(rows=512, dtype=dtype)
    loss = CrossEntropy(WEIGHTS, 0.1, -100, COUNTS)
    assert torch.equal(loss(logits, target), loss(logits.float(), target))


@given(split=st.integers(0, 64), label_smoothing=st.sampled_from([0.0, 0.2]), weighted=st.booleans())
def test_micro_batches_add_up(split, label_smoothing, weighted):
    logits, target = logits_and_targets(dtype=torch.float64)
    loss = CrossEntropy("auto" if weighted else None, label_smoothing, -100, COUNTS)
    parts = loss(logits[:split], target[:split]) + loss(logits[split:], target[split:])
    counts = loss.num_targets(target[:split]) + loss.num_targets(target[split:])
    assert math.isclose(parts.item(), loss(logits, target).item(), rel_tol=1e-13)
    assert torch.equal(counts, loss.num_targets(target))


def test_gradient_in_float64():
    logits, target = logits_and_targets(rows=9, dtype=torch.float64)
    loss = CrossEntropy("auto", 0.1, -100, COUNTS)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), logits.requires_grad_())


def test_weights_follow_the_module_and_stay_out_of_its_state():
    loss = CrossEntropy("auto", 0.0, -100, COUNTS).to("meta")
    assert loss.weight.device.type == "meta"
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0, math.nan])
def test_label_smoothing_out_of_range(label_smoothing):
    with pytest.raises(ConfigError, match=r"^label_smoothing: must be at least 0 and below 1, got "):
        CrossEntropy(None, label_smoothing, -100)


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
def test_weight_out_of_range(value):
    with pytest.raises(ConfigError, match=r"^weight: every value must be finite and not negative, got "):
        CrossEntropy([1.0, value], 0.0, -100, [3, 4])
