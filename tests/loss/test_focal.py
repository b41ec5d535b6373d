import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from trainer.errors import ConfigError
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.focal import Focal

COUNTS = [50, 30, 0, 15, 5]
ALPHA = [0.25, 1.0, 0.5, 0.0, 0.75]


def logits_and_targets(rows: int = 64, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    logits = 4 * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (rows,), generator=generator)
    target[::7] = -100
    return logits.to(dtype), target


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
    logits, target = logits_and_targets()
    value = Focal(gamma, alpha, label_smoothing, -100, COUNTS)(logits, target)
    expected = by_the_formula(logits, target, gamma, alpha or [1.0] * 5, label_smoothing)
    assert value.shape == ()
    assert math.isclose(value.item(), expected, rel_tol=1e-12)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, "auto", ALPHA])
def test_gamma_zero_is_cross_entropy(alpha, label_smoothing):
    logits, target = logits_and_targets(dtype=torch.float32)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    weight = None if alpha is None else Focal(0.0, alpha, 0.0, -100, COUNTS).alpha

    value = Focal(0.0, alpha, label_smoothing, -100, COUNTS)(ours, target)
    expected = F.cross_entropy(theirs, target, weight, reduction="sum", label_smoothing=label_smoothing)
    value.backward()
    expected.backward()

    assert value.dtype == torch.float32
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, "auto", ALPHA])
def test_gamma_near_zero_is_near_cross_entropy(alpha, label_smoothing):
    logits, target = logits_and_targets()
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
    logits, target = logits_and_targets(rows=9)
    loss = Focal(gamma, alpha, label_smoothing, -100, COUNTS)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), logits.requires_grad_())


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("alpha", [None, "auto"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("rows", [0, 4])
def test_without_targets_it_is_zero(rows, gamma, alpha, label_smoothing):
    logits = torch.randn(rows, 5, requires_grad=True)
    target = torch.full((rows,), -100)
    loss = Focal(gamma, alpha, label_smoothing, -100, COUNTS)
    value = loss(logits, target)
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert loss.num_targets(target).item() == 0


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


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_mixed_precision_does_not_reach_it(label_smoothing):
    logits, target = logits_and_targets(rows=512, dtype=torch.bfloat16)
    loss = Focal(2.0, ALPHA, label_smoothing, -100, COUNTS)
    expected = loss(logits.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(logits, target)
    assert torch.equal(value, expected)


def test_confident_rows_keep_their_digits_in_float32():
    # 1 - p is 1e-4 here: 1 - exp(log p) would be a multiple of 6e-8, off by up to 3 parts in 10,000.
    logits, target = torch.tensor([[9.0, 0.0], [9.1, 0.0], [9.2, 0.0]]), torch.tensor([0, 0, 0])
    value = Focal(1.0, None, 0.0, -100)(logits, target)
    surprise = F.nll_loss(logits.log_softmax(1), target, reduction="none").double()
    assert math.isclose(value.item(), (-torch.expm1(-surprise) * surprise).sum().item(), rel_tol=1e-6)


@given(
    kept=st.lists(st.booleans(), min_size=64, max_size=64),
    gamma=st.sampled_from([0.0, 0.5, 2.0]),
    label_smoothing=st.sampled_from([0.0, 0.2]),
)
def test_ignoring_rows_is_leaving_them_out(kept, gamma, label_smoothing):
    logits, target = logits_and_targets()
    mask = torch.tensor(kept)
    loss = Focal(gamma, "auto", label_smoothing, -100, COUNTS)
    ignoring = target.masked_fill(~mask, -100)
    assert torch.allclose(loss(logits, ignoring), loss(logits[mask], target[mask]), rtol=1e-13, atol=1e-13)
    assert torch.equal(loss.num_targets(ignoring), loss.num_targets(target[mask]))


@given(gamma=st.floats(0, 8), more=st.floats(0, 4))
def test_a_larger_gamma_never_gives_a_larger_loss(gamma, more):
    logits, target = logits_and_targets()
    smaller, larger = (Focal(g, None, 0.1, -100)(logits, target) for g in (gamma, gamma + more))
    assert larger <= smaller * (1 + 1e-12)


def test_alpha_follows_the_module_and_stays_out_of_its_state():
    loss = Focal(2.0, ALPHA, 0.0, -100, COUNTS).to("meta")
    assert loss.alpha.device.type == "meta"
    assert loss.state_dict() == {}


@pytest.mark.parametrize("gamma", [-0.5, math.nan, math.inf])
def test_gamma_out_of_range(gamma):
    with pytest.raises(ConfigError, match=r"^gamma: must be finite and not negative, got "):
        Focal(gamma, None, 0.0, -100)


@pytest.mark.parametrize("value", [-0.5, 1.5, math.nan])
def test_alpha_out_of_range(value):
    with pytest.raises(ConfigError, match=r"^alpha: every value must be between 0 and 1, got "):
        Focal(2.0, [1.0, value], 0.0, -100, [3, 4])


def test_label_smoothing_out_of_range():
    with pytest.raises(ConfigError, match=r"^label_smoothing: "):
        Focal(2.0, None, 1.0, -100)
