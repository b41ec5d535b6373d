import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from trainer.errors import ConfigError, RowError
from trainer.loss.cosine_embedding import CosineEmbedding


def pairs(samples: int = 12, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    output = torch.randn(2 * samples, 4, generator=generator, dtype=torch.float64).to(dtype)
    return output, 2.0 * torch.randint(2, (samples,), generator=generator) - 1


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_torchs(dtype, margin):
    output, target = pairs(dtype=dtype)
    ours, theirs = output.clone().requires_grad_(), output.clone().requires_grad_()
    value = CosineEmbedding(margin)(ours, target)
    expected = F.cosine_embedding_loss(theirs[0::2], theirs[1::2], target, margin=margin, reduction="sum")
    value.backward()
    expected.backward()
    assert (value.shape, value.dtype) == ((), dtype)
    assert torch.allclose(value, expected, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("margin", [-0.5, 0.0, 0.5])
def test_value_is_the_definitions(margin):
    output, target = pairs()
    rows, expected = output.tolist(), 0.0
    for x, y, similarity in zip(rows[0::2], rows[1::2], target.tolist(), strict=True):
        cosine = math.fsum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
        expected += 1 - cosine if similarity == 1 else max(0.0, cosine - margin)
    assert math.isclose(CosineEmbedding(margin)(output, target).item(), expected, rel_tol=1e-10)


def test_gradient_in_float64():
    output, target = pairs(5)
    assert torch.autograd.gradcheck(lambda vectors: CosineEmbedding(0.1)(vectors, target), output.requires_grad_())


@given(split=st.integers(0, 12), order=st.permutations(range(12)))
def test_it_is_a_sum_over_the_pairs(split, order):
    output, target = pairs()
    loss = CosineEmbedding(0.0)
    moved, wanted = output.view(12, 2, 4)[order].flatten(0, 1), target[order]
    parts = loss(moved[: 2 * split], wanted[:split]) + loss(moved[2 * split :], wanted[split:])
    assert math.isclose(parts.item(), loss(output, target).item(), rel_tol=1e-12)
    assert loss.num_targets(target[:split]) + loss.num_targets(target[split:]) == loss.num_targets(target) == 12


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zero_and_large_vectors_stay_finite(dtype):
    output, target = pairs(dtype=dtype)
    output[[0, 1, 4, 7]] = 0
    output[8:12] *= 1e4
    output.requires_grad_()
    value = CosineEmbedding(0.0)(output, target)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, CosineEmbedding(0.0)(output.float(), target))
    assert torch.isfinite(value)
    assert not output.grad.isnan().any()


def test_without_pairs_it_is_zero():
    output, target = torch.zeros(0, 4, requires_grad=True), torch.zeros(0)
    value = CosineEmbedding(0.0)(output, target)
    value.backward()
    assert value.item() == 0
    assert output.grad.shape == (0, 4)
    assert CosineEmbedding(0.0).num_targets(target).item() == 0


@pytest.mark.parametrize("shape", [(4, 5), (9, 5), (8,), (4, 2, 5)])
def test_two_rows_for_each_pair(shape):
    with pytest.raises(ValueError, match=r"^the output must have two rows for each entry of the target: the output is"):
        CosineEmbedding(0.0)(torch.zeros(shape), torch.ones(4))


@pytest.mark.parametrize("margin", [-1.5, 1.5, math.nan])
def test_margin_out_of_range(margin):
    with pytest.raises(ConfigError, match=r"^margin: must be between -1 and 1, got "):
        CosineEmbedding(margin)


def test_a_target_at_fault_is_named():
    loss = CosineEmbedding(0.0)
    loss.check(torch.tensor([1.0, -1.0]))
    with pytest.raises(RowError, match=r"^target: must be -1 or 1, got 0\.0") as caught:
        loss.check(torch.tensor([1.0, -1.0, 0.0]))
    assert caught.value.position == 2
    with pytest.raises(RowError, match=r"^target: must be -1 or 1 for each pair, \(B,\)"):
        loss.check(torch.tensor([1, -1]))
