import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ConfigError
from trainer.loss.asymmetric import Asymmetric
from trainer.loss.binary_cross_entropy import BinaryCrossEntropy


def logits_and_targets(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(23)
    logits = 4 * torch.randn(32, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(2, (32, 4), generator=generator).float()
    target[::7, 1:3] = -100
    return logits.to(dtype), target


def by_the_formula(logits, target, gamma_negative, gamma_positive, clip):
    """The definition, entry by entry."""
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        if y == 1:
            total -= (1 - p) ** gamma_positive * math.log(p)
        elif y == 0:
            q = max(p - clip, 0)
            total -= q**gamma_negative * math.log(1 - q)
    return total


@pytest.mark.parametrize("clip", [0.0, 0.05, 0.3])
@pytest.mark.parametrize(("gamma_negative", "gamma_positive"), [(4.0, 1.0), (0.5, 0.0), (0.0, 2.0), (1.0, 0.5)])
def test_value_is_the_formulas(gamma_negative, gamma_positive, clip):
    logits, target = logits_and_targets()
    value = Asymmetric(gamma_negative, gamma_positive, clip, -100)(logits, target)
    assert value.shape == ()
    assert math.isclose(
        value.item(), by_the_formula(logits, target, gamma_negative, gamma_positive, clip), rel_tol=1e-11
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_powers_and_clip_it_is_binary_cross_entropy(dtype):
    logits, target = logits_and_targets(dtype)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = Asymmetric(0.0, 0.0, 0.0, -100)(ours, target)
    expected = BinaryCrossEntropy(None, 0.0, -100)(theirs, target)
    value.backward()
    expected.backward()
    digits = torch.finfo(dtype).eps
    assert math.isclose(value.item(), expected.item(), rel_tol=8 * digits)
    assert torch.allclose(ours.grad, theirs.grad, rtol=8 * digits, atol=2 * digits)


@pytest.mark.parametrize("clip", [0.0, 0.05])
@pytest.mark.parametrize(("gamma_negative", "gamma_positive"), [(4.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_gradient_in_float64(gamma_negative, gamma_positive, clip):
    logits, target = logits_and_targets()
    loss = Asymmetric(gamma_negative, gamma_positive, clip, -100)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target[:8]), logits[:8].requires_grad_())


def test_a_negative_below_the_clip_is_done():
    logits = torch.tensor([[-3.0, -2.0]], requires_grad=True)
    value = Asymmetric(4.0, 1.0, 0.05, -100)(logits, torch.zeros(1, 2))
    value.backward()
    assert logits.grad[0, 0] == 0
    assert logits.grad[0, 1] > 0
    assert math.isclose(
        value.item(), -((1 / (1 + math.exp(2)) - 0.05) ** 4) * math.log(1.05 - 1 / (1 + math.exp(2))), rel_tol=1e-4
    )


@pytest.mark.parametrize("clip", [0.0, 1e-6, 0.05])
def test_sure_and_wrong_negatives_keep_their_digits_in_float32(clip):
    logits = torch.tensor([[8.0, 12.0, 16.0]])
    value = Asymmetric(4.0, 1.0, clip, -100)(logits, torch.zeros(1, 3))
    expected = by_the_formula(logits.double(), torch.zeros(1, 3), 4.0, 1.0, clip)
    assert math.isclose(value.item(), expected, rel_tol=1e-6)


@given(gamma=st.floats(0, 8), more=st.floats(0, 4), clip=st.floats(0, 0.5))
def test_larger_powers_never_give_a_larger_loss(gamma, more, clip):
    logits, target = logits_and_targets()
    smaller, larger = (Asymmetric(power, power, clip, -100)(logits, target) for power in (gamma, gamma + more))
    assert larger <= smaller * (1 + 1e-12)


def test_all_faults_come_together():
    with pytest.raises(ConfigError) as error:
        Asymmetric(-1.0, math.nan, 1.0, 1)
    assert error.value.messages == (
        "gamma_negative: must be finite and not negative, got -1.0.",
        "gamma_positive: must be finite and not negative, got nan.",
        "clip: must be at least 0 and below 1, got 1.0.",
        "ignore_index: would leave out every such label, got 1. Use a value that no label has, -100 for one.",
    )
