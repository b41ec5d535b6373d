import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.loss_sums import logits_and_classes, value_and_gradient
from trainer.errors import ConfigError
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.poly import Poly

COUNTS = [50, 30, 0, 15, 5]
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.5]


def evaluate_definition(logits, target, epsilon, weights, label_smoothing):
    """Sum the weighted cross entropy and 1 - sum of smoothed target times p, row by row."""
    total = 0.0
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        if y == -100:
            continue
        norm = math.fsum(math.exp(x) for x in row)
        p = [math.exp(x) / norm for x in row]
        share = [label_smoothing / len(p) + (1 - label_smoothing) * (c == y) for c in range(len(p))]
        total += math.fsum(w * s * -math.log(q) for w, s, q in zip(weights, share, p, strict=True))
        total += epsilon * weights[y] * (1 - math.fsum(s * q for s, q in zip(share, p, strict=True)))
    return total


def test_value_matches_the_definition():
    logits, target = logits_and_classes()
    for epsilon, weight, label_smoothing in [(-1.0, None, 0.0), (0.5, WEIGHTS, 0.1), (4.0, None, 0.1)]:
        value = Poly(epsilon, weight, label_smoothing, -100, COUNTS)(logits, target)
        expected = evaluate_definition(logits, target, epsilon, weight or [1.0] * 5, label_smoothing)
        assert value.shape == ()
        assert math.isclose(value.item(), expected, rel_tol=1e-12)


def test_epsilon_zero_is_cross_entropy():
    logits, target = logits_and_classes()
    ours = value_and_gradient(Poly(0.0, WEIGHTS, 0.1, -100, COUNTS), logits, target)
    torch.testing.assert_close(ours, value_and_gradient(CrossEntropy(WEIGHTS, 0.1, -100, COUNTS), logits, target))


def test_gradient():
    logits, target = logits_and_classes(rows=9)
    for epsilon, weight, label_smoothing in [(-1.0, None, 0.1), (1.0, "auto", 0.0)]:
        loss = Poly(epsilon, weight, label_smoothing, -100, COUNTS)
        assert torch.autograd.gradcheck(lambda scores, loss=loss: loss(scores, target), logits.requires_grad_())


def test_confident_rows_keep_their_digits_in_float32():
    logits, target = torch.tensor([[9.0, 0.0], [9.1, 0.0], [9.2, 0.0]]), torch.tensor([0, 0, 0])
    difference = Poly(1e4, None, 0.0, -100)(logits, target) - CrossEntropy(None, 0.0, -100)(logits, target)
    expected = 1e4 * math.fsum(1 / (1 + math.exp(x)) for x in logits[:, 0].tolist())
    assert math.isclose(difference.item(), expected, rel_tol=2e-3)


@settings(max_examples=30)
@given(epsilon=st.floats(-1, 8), more=st.floats(0, 4))
def test_a_larger_epsilon_never_gives_a_smaller_loss(epsilon, more):
    logits, target = logits_and_classes()
    smaller, larger = (Poly(value, None, 0.1, -100)(logits, target) for value in (epsilon, epsilon + more))
    assert larger >= smaller * (1 - 1e-12)


def test_loss_of_shares_is_the_mean_over_the_classes():
    logits = logits_and_classes(rows=12)[0]
    shares = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(dim=1)
    loss = Poly(2.0, WEIGHTS, 0.1, -100, COUNTS)
    rows = zip(logits, shares, strict=True)
    expected = sum(share * loss(row[None], torch.tensor([y])) for row, each in rows for y, share in enumerate(each))
    assert math.isclose(loss(logits, shares).item(), expected.item(), rel_tol=1e-12)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, shares[:6]), logits[:6].requires_grad_())
    assert loss.num_targets(shares).item() == 12


def test_wrong_arguments_are_reported_together():
    for epsilon in (-1.5, math.nan, math.inf):
        with pytest.raises(ConfigError) as error:
            Poly(epsilon, [0.0], -0.1, 1)
        keys = [message.split(":")[0] for message in error.value.messages]
        assert keys == ["epsilon", "label_smoothing", "weight", "ignore_index"]
    with pytest.raises(ConfigError, match=r"^weight: "):
        Poly(1.0, "auto", 0.0, -100)
