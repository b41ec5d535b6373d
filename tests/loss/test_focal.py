import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support.loss_sums import logits_and_classes
from trainer.errors import ConfigError
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.focal import Focal

COUNTS = [50, 30, 0, 15, 5]
ALPHA = [0.25, 1.0, 0.5, 0.0, 0.75]


def by_the_formula(logits, target, gamma, alpha, label_smoothing):
    """The definition, class by class and row by row."""
    total = 0.0
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        if y == -100:
            continue
        norm = math.fsum(math.exp(x) for x in row)
        p = [math.exp(x) / norm for x in row]
        spread = math.fsum(a * -math.log(q) for a, q in zip(alpha, p, strict=True)) / len(p)
        cross_entropy = (1 - label_smoothing) * alpha[y] * -math.log(p[y]) + label_smoothing * spread
        total += (1 - p[y]) ** gamma * cross_entropy
    return total


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_value_is_the_formulas(gamma, alpha, label_smoothing):
    logits, target = logits_and_classes()
    value = Focal(gamma, alpha, label_smoothing, -100, COUNTS)(logits, target)
    expected = by_the_formula(logits, target, gamma, alpha or [1.0] * 5, label_smoothing)
    assert value.shape == ()
    assert math.isclose(value.item(), expected, rel_tol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, "auto", "effective_number", ALPHA])
def test_gamma_zero_is_cross_entropy(alpha, label_smoothing, dtype):
    logits, target = logits_and_classes(dtype=dtype)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = Focal(0.0, alpha, label_smoothing, -100, COUNTS)(ours, target)
    expected = CrossEntropy(alpha, label_smoothing, -100, COUNTS)(theirs, target)
    value.backward()
    expected.backward()
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


def test_one_factor_for_all_classes():
    logits, target = logits_and_classes()
    expected = 0.25 * Focal(2.0, None, 0.1, -100)(logits, target)
    assert math.isclose(Focal(2.0, 0.25, 0.1, -100)(logits, target).item(), expected.item(), rel_tol=1e-14)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, "auto", ALPHA])
def test_gamma_near_zero_is_near_cross_entropy(alpha, label_smoothing):
    logits, target = logits_and_classes()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = Focal(1e-13, alpha, label_smoothing, -100, COUNTS)(ours, target)
    expected = CrossEntropy(alpha, label_smoothing, -100, COUNTS)(theirs, target)
    value.backward()
    expected.backward()
    assert math.isclose(value.item(), expected.item(), rel_tol=1e-11)
    assert torch.allclose(ours.grad, theirs.grad, rtol=0, atol=1e-10)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, "auto", ALPHA])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradient_in_float64(gamma, alpha, label_smoothing):
    logits, target = logits_and_classes(rows=9)
    loss = Focal(gamma, alpha, label_smoothing, -100, COUNTS)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), logits.requires_grad_())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.01, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saturated_logits_stay_finite(dtype, gamma, label_smoothing):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [1e4, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    value = Focal(gamma, None, label_smoothing, -100)(logits, torch.tensor([0, 1, -100]))
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()
    assert torch.equal(logits.grad[2], torch.zeros(3, dtype=dtype))


def test_confident_rows_keep_their_digits_in_float32():
    # 1 - p is 1e-4 here: 1 - exp(log p) would be a multiple of 6e-8, off by up to 3 parts in 10,000.
    logits, target = torch.tensor([[9.0, 0.0], [9.1, 0.0], [9.2, 0.0]]), torch.tensor([0, 0, 0])
    value = Focal(1.0, None, 0.0, -100)(logits, target)
    surprise = F.nll_loss(logits.log_softmax(1), target, reduction="none").double()
    assert math.isclose(value.item(), (-torch.expm1(-surprise) * surprise).sum().item(), rel_tol=1e-6)


@given(gamma=st.floats(0, 8), more=st.floats(0, 4))
def test_a_larger_gamma_never_gives_a_larger_loss(gamma, more):
    logits, target = logits_and_classes()
    smaller, larger = (Focal(g, None, 0.1, -100)(logits, target) for g in (gamma, gamma + more))
    assert larger <= smaller * (1 + 1e-12)


def label_logits_and_targets(rows: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    logits = 4 * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(2, (rows, 5), generator=generator).float()
    target[::7, 1:3] = -100
    return logits, target


def by_the_label_formula(logits, target, gamma, alpha, label_smoothing):
    """The definition, entry by entry."""
    total = 0.0
    for row, answers in zip(logits.tolist(), target.tolist(), strict=True):
        for x, y, a in zip(row, answers, alpha, strict=True):
            if y == -100:
                continue
            p = 1 / (1 + math.exp(-x))
            p_t = p if y == 1 else 1 - p
            share = y * (1 - label_smoothing) + label_smoothing / 2
            cross_entropy = -a * share * math.log(p) - (1 - a) * (1 - share) * math.log(1 - p)
            total += (1 - p_t) ** gamma * cross_entropy
    return total


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, 0.75, ALPHA])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_value_over_labels_is_the_formulas(gamma, alpha, label_smoothing):
    logits, target = label_logits_and_targets()
    value = Focal(gamma, alpha, label_smoothing, -100, COUNTS)(logits, target)
    one_a_label = alpha if isinstance(alpha, list) else [alpha or 0.25] * 5
    expected = by_the_label_formula(logits, target, gamma, one_a_label, label_smoothing)
    assert value.shape == ()
    assert math.isclose(value.item(), expected, rel_tol=1e-11)


def test_value_over_labels_of_a_known_example():
    logits = torch.tensor([[0.3992, 0.2232, 0.6435], [0.3800, 0.3044, 0.3241]])
    target = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    loss = Focal(2.0, 0.25, 0.0, -100)
    assert loss.num_targets(target).item() == 6
    assert round((loss(logits, target) / loss.num_targets(target)).item(), 4) == 0.0908
    assert torch.equal(Focal(2.0, None, 0.0, -100)(logits, target), loss(logits, target))


def test_gamma_zero_with_even_alpha_is_half_of_binary_cross_entropy():
    logits, target = label_logits_and_targets()
    target = target.clamp_min(0).double()
    expected = 0.5 * F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    assert math.isclose(Focal(0.0, 0.5, 0.0, -100)(logits, target).item(), expected.item(), rel_tol=1e-14)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_a_label_is_a_class_out_of_two(label_smoothing, gamma):
    logits, target = label_logits_and_targets()
    labels, classes = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = Focal(gamma, 0.25, label_smoothing, -100)(labels, target)
    two = torch.stack([torch.zeros_like(classes), classes], dim=2)
    expected = Focal(gamma, [0.75, 0.25], label_smoothing, -100, num_outputs=2)(two, target.long())
    value.backward()
    expected.backward()
    assert math.isclose(value.item(), expected.item(), rel_tol=1e-13)
    assert torch.allclose(labels.grad, classes.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_gradient_over_labels_in_float64(gamma, label_smoothing):
    logits, target = label_logits_and_targets(rows=4)
    loss = Focal(gamma, ALPHA, label_smoothing, -100, COUNTS)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), logits.requires_grad_())


def test_auto_over_labels_is_the_share_of_the_negatives():
    alpha = Focal(2.0, "auto", 0.0, -100, [50, 25, 0, 100, 1], 5, 100).label_alpha
    assert alpha.tolist() == pytest.approx([0.5, 0.75, 0.5, 0.5, 0.99])


def test_auto_over_labels_needs_the_number_of_samples():
    loss = Focal(2.0, "auto", 0.0, -100, COUNTS)
    loss.check(torch.tensor([0, 4]))
    with pytest.raises(ConfigError, match=r"^alpha: the balance of labels needs a task that counts its training "):
        loss.check(torch.zeros(2, 5))


def test_labels_need_an_ignore_index_that_is_no_label():
    loss = Focal(2.0, None, 0.0, 0, COUNTS)
    loss.check(torch.tensor([0, 4]))
    with pytest.raises(ConfigError, match=r"^ignore_index: would leave out every such label, got 0\. Use a value "):
        loss.check(torch.zeros(2, 5))


def test_alpha_of_another_number_of_labels():
    with pytest.raises(ValueError, match="5 values of alpha for an output of 4 labels"):
        Focal(2.0, ALPHA, 0.0, -100, COUNTS)(torch.zeros(3, 4), torch.zeros(3, 4))


@pytest.mark.parametrize("alpha", [0.5, ALPHA, "auto"])
def test_alpha_follows_the_module(alpha):
    loss = Focal(2.0, alpha, 0.0, -100, COUNTS, 5, 100).to("meta")
    assert loss.alpha.device.type == loss.label_alpha.device.type == "meta"


@pytest.mark.parametrize("gamma", [-0.5, math.nan, math.inf])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ConfigError, match=r"^gamma: must be .*at least 0, got "):
        Focal(gamma, None, 0.0, -100)


@pytest.mark.parametrize("value", [-0.5, 1.5, math.nan])
def test_alpha_out_of_range(value):
    with pytest.raises(ConfigError, match=r"^alpha: every value must be between 0 and 1, got "):
        Focal(2.0, [1.0, value], 0.0, -100, [3, 4])
    with pytest.raises(ConfigError, match=r"^alpha: must be between 0 and 1, got "):
        Focal(2.0, value, 0.0, -100)


def test_label_smoothing_out_of_range():
    with pytest.raises(ConfigError, match=r"^label_smoothing: "):
        Focal(2.0, None, 1.0, -100)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, 0.5, ALPHA])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_the_loss_of_shares_is_the_mean_over_the_classes(gamma, alpha, label_smoothing):
    logits = logits_and_classes(rows=12)[0]
    shares = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(dim=1)
    loss = Focal(gamma, alpha, label_smoothing, -100, COUNTS, train_target="shares")
    rows = zip(logits, shares, strict=True)
    expected = sum(share * loss(row[None], torch.tensor([y])) for row, of in rows for y, share in enumerate(of))

    loss.check(shares)
    assert math.isclose(loss(logits, shares).item(), expected.item(), rel_tol=1e-12)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, shares), logits.requires_grad_())
    assert loss.num_targets(shares).item() == 12


def test_shares_of_one_class_are_that_class_in_float32_too():
    logits, target = logits_and_classes(dtype=torch.float32)
    target = target.clamp_min(0)
    loss = Focal(0.5, None, 0.1, -100, COUNTS, train_target="shares")
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value, expected = loss(ours, F.one_hot(target, 5).float()), loss(theirs, target)
    value.backward()
    expected.backward()

    assert math.isclose(value.item(), expected.item(), rel_tol=1e-6)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)
