import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support.loss_sums import check_reference, value_and_gradient
from trainer.errors import ConfigError, RowError
from trainer.loss.cosine_embedding import CosineEmbedding


def pairs(samples: int = 12, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    output = torch.randn(2 * samples, 4, generator=generator, dtype=torch.float64).to(dtype)
    return output, 2.0 * torch.randint(2, (samples,), generator=generator) - 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_match_torch(dtype):
    output, target = pairs(dtype=dtype)
    for margin in (-0.5, 0.0, 0.5):

        def reference(output, target, margin=margin):
            return F.cosine_embedding_loss(output[0::2], output[1::2], target, margin=margin, reduction="sum")

        check_reference(CosineEmbedding(margin), reference, output, target)


def test_value_matches_the_definition():
    output, target = pairs()
    rows = output.tolist()
    for margin in (-0.5, 0.0, 0.5):
        expected = 0.0
        for x, y, similarity in zip(rows[0::2], rows[1::2], target.tolist(), strict=True):
            cosine = math.fsum(a * b for a, b in zip(x, y, strict=True)) / (math.hypot(*x) * math.hypot(*y))
            expected += 1 - cosine if similarity == 1 else max(0.0, cosine - margin)
        assert math.isclose(CosineEmbedding(margin)(output, target).item(), expected, rel_tol=1e-10)


def test_gradient():
    output, target = pairs(5)
    assert torch.autograd.gradcheck(lambda vectors: CosineEmbedding(0.1)(vectors, target), output.requires_grad_())


@settings(max_examples=20)
@given(split=st.integers(0, 12), order=st.permutations(range(12)))
def test_loss_is_a_sum_over_pairs(split, order):
    output, target = pairs()
    loss = CosineEmbedding(0.0)
    x, y = output.view(12, 2, 4)[order].flatten(0, 1), target[order]
    parts = loss(x[: 2 * split], y[:split]) + loss(x[2 * split :], y[split:])
    assert math.isclose(parts.item(), loss(output, target).item(), rel_tol=1e-12)
    assert loss.num_targets(target[:split]) + loss.num_targets(target[split:]) == loss.num_targets(target) == 12


def test_zero_and_large_vectors_stay_finite():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        output, target = pairs(dtype=dtype)
        output[[0, 1, 4, 7]] = 0
        output[8:12] *= 1e4
        value, gradient = value_and_gradient(CosineEmbedding(0.0), output, target)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, CosineEmbedding(0.0)(output.float(), target), rtol=1e-6, atol=0)
        assert torch.isfinite(value)
        assert not gradient.isnan().any()


def test_loss_without_pairs_is_zero():
    target = torch.zeros(0)
    value, gradient = value_and_gradient(CosineEmbedding(0.0), torch.zeros(0, 4), target)
    assert value.item() == 0
    assert gradient.shape == (0, 4)
    assert CosineEmbedding(0.0).num_targets(target).item() == 0


def test_output_must_have_two_rows_per_pair():
    for shape in ((4, 5), (9, 5), (8,), (4, 2, 5)):
        with pytest.raises(ValueError, match=r"^the output must have two rows for each entry of the target: "):
            CosineEmbedding(0.0)(torch.zeros(shape), torch.ones(4))


@pytest.mark.parametrize("margin", [-1.5, math.nan])
def test_margin_out_of_range_raises(margin):
    with pytest.raises(ConfigError, match=r"^margin: must be "):
        CosineEmbedding(margin)


def test_check_names_the_first_wrong_row():
    loss = CosineEmbedding(0.0)
    loss.check(torch.tensor([1.0, -1.0]))
    with pytest.raises(RowError, match=r"^target: must be -1 or 1, got 0\.0") as error:
        loss.check(torch.tensor([1.0, -1.0, 0.0]))
    assert error.value.position == 2
    with pytest.raises(RowError, match=r"^target: must be .*\(B,\)"):
        loss.check(torch.tensor([1, -1]))
