import math

import pytest
import torch

from trainer.loss import surprise as module
from trainer.loss.surprise import surprise_and_spread

FACTORS = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.5])


def logits_and_targets(rows: int = 9, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    logits = 4 * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(5, (rows,), generator=generator)


def by_autograd(logits, target, factors):
    log_p = logits.log_softmax(1)
    v = torch.ones(5) if factors is None else factors
    return -log_p[torch.arange(len(target)), target], -(log_p * v.to(log_p.dtype)).sum(1)


@pytest.mark.parametrize("elements", [1, 10, 2**20])
@pytest.mark.parametrize("factors", [None, FACTORS])
def test_values_and_gradients_are_those_of_log_softmax(monkeypatch, factors, elements):
    monkeypatch.setattr(module, "_PIECE_ELEMENTS", elements)
    logits, target = logits_and_targets()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(2, 9, generator=generator, dtype=torch.float64)

    found = surprise_and_spread(ours, target, factors, spread=True)
    expected = by_autograd(theirs, target, factors)
    torch.autograd.backward(found, list(upstream))
    torch.autograd.backward(expected, list(upstream))

    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-14, atol=1e-14)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("factors", [None, FACTORS])
@pytest.mark.parametrize("spread", [False, True])
def test_gradient_in_float64(spread, factors):
    logits, target = logits_and_targets()

    def found(scores):
        return [rows for rows in surprise_and_spread(scores, target, factors, spread=spread) if rows is not None]

    assert torch.autograd.gradcheck(found, logits.requires_grad_())


def test_a_spread_that_is_not_wanted_is_not_made():
    assert surprise_and_spread(*logits_and_targets(), None, spread=False)[1] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spread", [False, True])
def test_half_precision_is_rounded_only_in_the_gradient(dtype, spread):
    logits, target = logits_and_targets(rows=64, dtype=dtype)
    half, single = logits.clone().requires_grad_(), logits.float().requires_grad_()
    found, expected = (surprise_and_spread(scores, target, FACTORS, spread=spread) for scores in (half, single))
    for one, other in zip(found, expected, strict=True):
        assert one is other is None or torch.equal(one, other)
        assert one is None or one.dtype == torch.float32
    sum(rows.sum() for rows in found if rows is not None).backward()
    sum(rows.sum() for rows in expected if rows is not None).backward()
    assert half.grad.dtype == dtype
    assert torch.equal(half.grad, single.grad.to(dtype))


def test_strides_do_not_matter():
    logits, target = logits_and_targets()
    rows, columns = logits.clone().requires_grad_(), logits.t().contiguous().requires_grad_()
    for scores in (rows, columns.t()):
        surprises, spreads = surprise_and_spread(scores, target, FACTORS, spread=True)
        (surprises.sum() + spreads.square().sum()).backward()
    assert torch.equal(columns.grad.t(), rows.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_saturated_logits(dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]], dtype=dtype, requires_grad=True)
    surprises, _ = surprise_and_spread(logits, torch.tensor([0, 1]), None, spread=False)
    surprises.sum().backward()
    assert surprises.tolist() == [0, logits[0, 0].item() - logits[0, 1].item()]
    assert torch.equal(logits.grad, torch.tensor([[0, 0, 0], [1, -1, 0]], dtype=dtype))


def test_large_scores_keep_their_digits_in_float32():
    # A row's log-sum-exp, 10,000.127 here, is known to 1 in 1,000 only; the two terms must stay apart.
    logits = torch.tensor([[1e4, 1e4 - 2]], requires_grad=True)
    surprises, _ = surprise_and_spread(logits, torch.tensor([0]), None, spread=False)
    surprises.sum().backward()
    assert math.isclose(surprises.item(), math.log1p(math.exp(-2)), rel_tol=1e-6)
    assert math.isclose(logits.grad[0, 1].item(), 1 / (1 + math.exp(2)), rel_tol=1e-6)


def test_no_rows():
    logits = torch.empty(0, 5, requires_grad=True)
    surprises, spreads = surprise_and_spread(logits, torch.empty(0, dtype=torch.int64), None, spread=True)
    (surprises.sum() + spreads.sum()).backward()
    assert surprises.shape == spreads.shape == (0,)
    assert logits.grad.shape == (0, 5)
