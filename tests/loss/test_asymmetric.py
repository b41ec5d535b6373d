import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.loss_sums import logits_and_labels, value_and_gradient
from trainer.errors import ConfigError
from trainer.loss.asymmetric import Asymmetric
from trainer.loss.binary_cross_entropy import BinaryCrossEntropy

SETTINGS = [(4.0, 1.0, 0.05), (0.5, 0.0, 0.0), (0.0, 2.0, 0.3), (0.5, 0.5, 0.05)]


def evaluate_definition(logits, target, gamma_negative, gamma_positive, clip):
    """Sum the definition over the entries."""
    total = 0.0
    for x, y in zip(logits.flatten().tolist(), target.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-x))
        if y == 1:
            total -= (1 - p) ** gamma_positive * math.log(p)
        elif y == 0:
            q = max(p - clip, 0)
            total -= q**gamma_negative * math.log(1 - q)
    return total


def test_value_matches_the_definition():
    logits, target = logits_and_labels()
    for setting in SETTINGS:
        value = Asymmetric(*setting, -100)(logits, target)
        assert value.shape == ()
        assert math.isclose(value.item(), evaluate_definition(logits, target, *setting), rel_tol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_powers_and_clip_it_is_binary_cross_entropy(dtype):
    logits, target = logits_and_labels(dtype)
    value, gradient = value_and_gradient(Asymmetric(0.0, 0.0, 0.0, -100), logits, target)
    expected, expected_gradient = value_and_gradient(BinaryCrossEntropy(None, 0.0, -100), logits, target)
    digits = torch.finfo(dtype).eps
    assert math.isclose(value.item(), expected.item(), rel_tol=8 * digits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=8 * digits, atol=2 * digits)


def test_gradient():
    logits, target = logits_and_labels(rows=8)
    for setting in SETTINGS:
        loss = Asymmetric(*setting, -100)
        assert torch.autograd.gradcheck(lambda scores, loss=loss: loss(scores, target), logits.requires_grad_())


def test_a_negative_below_the_clip_adds_nothing():
    logits = torch.tensor([[-3.0, -2.0]])
    value, gradient = value_and_gradient(Asymmetric(4.0, 1.0, 0.05, -100), logits, torch.zeros(1, 2))
    assert gradient[0, 0] == 0
    assert gradient[0, 1] > 0
    assert math.isclose(
        value.item(), -((1 / (1 + math.exp(2)) - 0.05) ** 4) * math.log(1.05 - 1 / (1 + math.exp(2))), rel_tol=1e-4
    )


def test_confident_wrong_negatives_keep_their_digits_in_float32():
    logits = torch.tensor([[8.0, 12.0, 16.0]])
    for clip in (0.0, 1e-6, 0.05):
        value = Asymmetric(4.0, 1.0, clip, -100)(logits, torch.zeros(1, 3))
        expected = evaluate_definition(logits.double(), torch.zeros(1, 3), 4.0, 1.0, clip)
        assert math.isclose(value.item(), expected, rel_tol=1e-6)


@settings(max_examples=30)
@given(gamma=st.floats(0, 8), more=st.floats(0, 4), clip=st.floats(0, 0.5))
def test_larger_powers_never_give_a_larger_loss(gamma, more, clip):
    logits, target = logits_and_labels()
    smaller, larger = (Asymmetric(power, power, clip, -100)(logits, target) for power in (gamma, gamma + more))
    assert larger <= smaller * (1 + 1e-12)


def test_wrong_arguments_are_reported_together():
    with pytest.raises(ConfigError) as error:
        Asymmetric(-1.0, math.nan, 1.0, 1)
    keys = [message.split(":")[0] for message in error.value.messages]
    assert keys == ["gamma_negative", "gamma_positive", "clip", "ignore_index"]
