import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import ConfigError, RowError
from trainer.loss.info_nce import InfoNce


def views(samples: int, num_views: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)
    output = torch.randn(samples * num_views, 5, generator=generator, dtype=torch.float64).to(dtype)
    return output, torch.arange(samples)[:, None].expand(samples, num_views)


def cosine(x: list[float], y: list[float]) -> float:
    lengths = math.hypot(*x) * math.hypot(*y)
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / lengths if lengths else 0.0


def evaluate_definition(output: torch.Tensor, num_views: int, temperature: float, symmetric: bool) -> float:
    """Sum the definition over the samples."""
    return math.fsum(terms(output, num_views, temperature, symmetric))


def terms(output: torch.Tensor, num_views: int, temperature: float, symmetric: bool) -> list[float]:
    """Return the term of the definition of each sample."""
    rows = output.tolist()
    samples = [rows[start : start + num_views] for start in range(0, len(rows), num_views)]
    candidates = [view for sample in samples for view in sample[1:]]
    found = []
    for anchor, positive, *_ in samples:
        chosen = math.exp(cosine(anchor, positive) / temperature)
        forwards = -math.log(chosen / math.fsum(math.exp(cosine(anchor, other) / temperature) for other in candidates))
        others = [math.exp(cosine(positive, sample[0]) / temperature) for sample in samples]
        found.append((forwards - math.log(chosen / math.fsum(others))) / 2 if symmetric else forwards)
    return found


@pytest.mark.parametrize("symmetric", [False, True])
def test_value_matches_the_definition(symmetric):
    for samples, num_views, temperature in [(1, 3, 1.0), (2, 2, 0.05), (7, 3, 0.05), (7, 5, 1.0)]:
        output, target = views(samples, num_views)
        value = InfoNce(temperature, symmetric)(output, target)
        expected = evaluate_definition(output, num_views, temperature, symmetric)
        assert (value.shape, value.dtype) == ((), torch.float64)
        assert math.isclose(value.item(), expected, rel_tol=1e-12, abs_tol=1e-13)


@pytest.mark.parametrize("symmetric", [False, True])
def test_other_draws_of_a_sample_are_no_negatives(symmetric):
    # Samples 0, 1, 0, 2: each draw of 0 is scored as if the other were not in the batch, and 1 and 2 see both draws.
    output, _ = views(4, 3)
    target = torch.tensor([0, 1, 0, 2])[:, None].expand(4, 3)
    value = InfoNce(0.5, symmetric)(output.requires_grad_(), target)
    (gradient,) = torch.autograd.grad(value, output)
    rows = output.detach().view(4, 3, 5)
    seen = {0: [0, 1, 3], 1: [1, 0, 2, 3], 2: [2, 1, 3], 3: [3, 0, 1, 2]}
    expected = 0.0
    for sample, others in seen.items():
        # The first sample's own term of the definition over the samples that it sees.
        whole = rows[others].flatten(0, 1)
        expected += terms(whole, 3, 0.5, symmetric)[0]
        assert others[0] == sample
    assert math.isclose(value.item(), expected, rel_tol=1e-12)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("symmetric", [False, True])
def test_one_sample_has_no_loss(symmetric):
    output, target = views(1, 2, torch.float32)
    value = InfoNce(0.05, symmetric)(output.requires_grad_(), target)
    value.backward()
    assert value.item() == 0
    assert torch.equal(output.grad, torch.zeros_like(output))


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradient(symmetric):
    output, target = views(3, 3)
    loss = InfoNce(0.5, symmetric)
    assert torch.autograd.gradcheck(lambda vectors: loss(vectors, target), output.requires_grad_())


@settings(max_examples=30)
@given(order=st.permutations(range(6)), symmetric=st.booleans(), num_views=st.integers(2, 4))
def test_the_order_of_the_samples_does_not_matter(order, symmetric, num_views):
    output, target = views(6, num_views)
    loss = InfoNce(0.05, symmetric)
    moved = output.view(6, num_views, 5)[order].flatten(0, 1)
    assert torch.allclose(loss(moved, target), loss(output, target), rtol=1e-12, atol=0)


@settings(max_examples=30)
@given(st.lists(st.floats(1e-30, 1e30), min_size=8, max_size=8))
def test_lengths_of_vectors_do_not_matter(lengths):
    output, target = views(4, 2, torch.float32)
    scaled = (output * torch.tensor(lengths)[:, None]).requires_grad_()
    value = InfoNce(0.05, True)(scaled, target)
    value.backward()
    assert torch.allclose(value, InfoNce(0.05, True)(output, target), rtol=1e-4)
    assert not scaled.grad.isnan().any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_zero_and_large_vectors_stay_finite(dtype):
    symmetric = True
    output, target = views(4, 3, dtype)
    output[[0, 4, 8]] = 0
    output[5] *= 1e4
    output.requires_grad_()
    loss = InfoNce(0.05, symmetric)
    value = loss(output, target)
    value.backward()
    assert value.dtype == torch.float32
    assert math.isclose(value.item(), evaluate_definition(output, 3, 0.05, symmetric), rel_tol=1e-5)
    assert torch.isfinite(output.grad).all()


def test_loss_without_samples_is_zero():
    output, target = torch.zeros(0, 5, requires_grad=True), torch.zeros(0, 3, dtype=torch.int64)
    value = InfoNce(0.05, True)(output, target)
    value.backward()
    assert value.item() == 0
    assert output.grad.shape == (0, 5)


def test_divisor_counts_samples():
    count = InfoNce(0.05, True).num_targets(torch.zeros(7, 3, dtype=torch.int64))
    assert (count.shape, count.dtype, count.item()) == ((), torch.int64, 7)


def test_output_must_have_one_row_per_view():
    for shape in ((8, 5), (4, 2, 5), (40,)):
        with pytest.raises(ValueError, match=r"^the output must have one row for each of the target's views: "):
            InfoNce(0.05, False)(torch.zeros(shape), torch.zeros(4, 3, dtype=torch.int64))


@pytest.mark.parametrize("temperature", [0.0, math.nan, math.inf])
def test_temperature_out_of_range_raises(temperature):
    with pytest.raises(ConfigError, match=r"^temperature: must be "):
        InfoNce(temperature, False)


def test_check_rejects_targets_without_views():
    for target in (torch.zeros(4), torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4, 2)):
        with pytest.raises(RowError, match=r"^target: must be .* at least two views"):
            InfoNce(0.05, False).check(target)
