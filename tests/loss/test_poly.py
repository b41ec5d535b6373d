import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.loss_sums import logits_and_classes
from trainer.errors import ConfigError
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.poly import Poly

COUNTS = [50, 30, 0, 15, 5]
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.5]


def by_the_formula(logits, target, epsilon, weights, label_smoothing):
    """The definition, row by row: weighted cross entropy and 1 - sum of smoothed target times p."""
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


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize("epsilon", [-1.0, 0.5, 1.0, 4.0])
def test_value_is_the_formulas(epsilon, weight, label_smoothing):
    logits, target = logits_and_classes()
    value = Poly(epsilon, weight, label_smoothing, -100, COUNTS)(logits, target)
    expected = by_the_formula(logits, target, epsilon, weight or [1.0] * 5, label_smoothing)
    assert value.shape == ()
    assert math.isclose(value.item(), expected, rel_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, "auto", WEIGHTS])
def test_epsilon_zero_is_cross_entropy(weight, label_smoothing, dtype):
    logits, target = logits_and_classes(dtype=dtype)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = Poly(0.0, weight, label_smoothing, -100, COUNTS)(ours, target)
    expected = CrossEntropy(weight, label_smoothing, -100, COUNTS)(theirs, target)
    value.backward()
    expected.backward()
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, "auto", WEIGHTS])
@pytest.mark.parametrize("epsilon", [-1.0, 1.0])
def test_gradient_in_float64(epsilon, weight, label_smoothing):
    logits, target = logits_and_classes(rows=9)
    loss = Poly(epsilon, weight, label_smoothing, -100, COUNTS)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), logits.requires_grad_())


def test_confident_rows_keep_their_digits_in_float32():
    logits, target = torch.tensor([[9.0, 0.0], [9.1, 0.0], [9.2, 0.0]]), torch.tensor([0, 0, 0])
    difference = Poly(1e4, None, 0.0, -100)(logits, target) - CrossEntropy(None, 0.0, -100)(logits, target)
    expected = 1e4 * math.fsum(1 / (1 + math.exp(x)) for x in logits[:, 0].tolist())
    assert math.isclose(difference.item(), expected, rel_tol=2e-3)


@given(epsilon=st.floats(-1, 8), more=st.floats(0, 4))
def test_a_larger_epsilon_never_gives_a_smaller_loss(epsilon, more):
    logits, target = logits_and_classes()
    smaller, larger = (Poly(value, None, 0.1, -100)(logits, target) for value in (epsilon, epsilon + more))
    assert larger >= smaller * (1 - 1e-12)


@pytest.mark.parametrize("epsilon", [-1.5, math.nan, math.inf])
def test_epsilon_out_of_range(epsilon):
    with pytest.raises(ConfigError, match=r"^epsilon: must be finite and at least -1, got "):
        Poly(epsilon, None, 0.0, -100)


def test_all_faults_come_together():
    with pytest.raises(ConfigError) as error:
        Poly(-2.0, "auto", -0.1, -100)
    assert [message.split(":")[0] for message in error.value.messages] == ["epsilon", "weight", "label_smoothing"]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
def test_the_loss_of_shares_is_the_mean_over_the_classes(weight, label_smoothing):
    logits = logits_and_classes()[0].double()
    shares = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(dim=1)
    loss = Poly(2.0, weight, label_smoothing, -100, COUNTS)
    rows = zip(logits, shares, strict=True)
    expected = sum(share * loss(row[None], torch.tensor([y])) for row, of in rows for y, share in enumerate(of))

    assert math.isclose(loss(logits, shares).item(), expected.item(), rel_tol=1e-12)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, shares[:6]), logits[:6].requires_grad_())
    assert loss.num_targets(shares).item() == len(logits)
