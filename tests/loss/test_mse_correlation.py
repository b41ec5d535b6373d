import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from trainer.errors import ConfigError, RowError
from trainer.loss.mse_correlation import MseCorrelation


def outputs_and_values(rows: int = 16, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    target = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    output = 0.5 * target + torch.randn(rows, 3, generator=generator, dtype=torch.float64) + 2
    return output.to(dtype), target.float()


def evaluate_definition(output: torch.Tensor, target: torch.Tensor, correlation: float) -> float:
    """Evaluate the definition column by column."""
    values = []
    for x, y in zip(output.T.tolist(), target.T.tolist(), strict=True):
        z_x = [(entry - statistics.fmean(x)) / statistics.stdev(x) for entry in x]
        z_y = [(entry - statistics.fmean(y)) / statistics.stdev(y) for entry in y]
        squared = statistics.fmean((a - b) ** 2 for a, b in zip(x, y, strict=True))
        values.append(squared + correlation * (1 - statistics.fmean(a * b for a, b in zip(z_x, z_y, strict=True))))
    return statistics.fmean(values) * len(output)


def test_a_known_value():
    output = torch.tensor([[0.1], [0.2], [0.2], [0.8], [0.4]])
    target = torch.tensor([[0.0], [1.0], [0.0], [0.0], [1.0]])
    loss = MseCorrelation(1.5)
    assert round((loss(output, target) / loss.num_targets(target)).item(), 4) == 1.9949


def test_value_matches_the_definition():
    for rows, correlation in [(2, 0.5), (3, 1.5), (16, 0.0), (16, 1.5)]:
        output, target = outputs_and_values(rows)
        value = MseCorrelation(correlation)(output, target)
        assert (value.shape, value.dtype) == ((), torch.float64)
        assert math.isclose(value.item(), evaluate_definition(output, target, correlation), rel_tol=1e-12)


def test_without_correlation_it_is_mean_squared_error():
    output, target = outputs_and_values()
    loss = MseCorrelation(0.0)
    expected = F.mse_loss(output, target.double())
    assert torch.allclose(loss(output, target) / loss.num_targets(target), expected, rtol=1e-12, atol=0)


def test_correlation_is_pearsons_times_rows_minus_one_over_rows():
    output, target = outputs_and_values()
    correlations = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(output.T, target.double().T, strict=True)]
    expected = F.mse_loss(output, target.double()) + 2 * (1 - torch.stack(correlations).mean() * 15 / 16)
    assert torch.allclose(MseCorrelation(2.0)(output, target) / 16, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("rows", [2, 5])
def test_gradient(rows):
    output, target = outputs_and_values(rows)
    assert torch.autograd.gradcheck(lambda values: MseCorrelation(1.5)(values, target), output.requires_grad_())


@settings(max_examples=30)
@given(order=st.permutations(range(16)))
def test_the_order_of_the_rows_does_not_matter(order):
    output, target = outputs_and_values()
    loss = MseCorrelation(1.5)
    assert torch.allclose(loss(output[order], target[order]), loss(output, target), rtol=1e-13, atol=0)


@settings(max_examples=50)
@given(
    value=st.floats(-1e4, 1e4, width=32),
    rows=st.integers(1, 300),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_a_constant_column_has_no_correlation(value, rows, dtype):
    spread = torch.linspace(-1, 1, rows)
    output = torch.stack([torch.full((rows,), value), spread], dim=1).to(dtype).requires_grad_()
    target = torch.stack([spread, torch.full((rows,), value)], dim=1)
    result = MseCorrelation(1.5)(output, target)
    result.backward()
    squared = (output.detach().to(result.dtype) - target).square().sum() / 2
    assert torch.allclose(result, squared + 1.5 * rows, rtol=1e-6)
    slope = (output.detach().to(result.dtype) - target).to(dtype)
    assert torch.allclose(output.grad, slope, rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1e-12), (1e3, 0.1)])
def test_a_small_variation_is_one(offset, scale):
    target = torch.tensor([[0.0], [1.0], [2.0]])
    output = scale * target + offset
    lack = MseCorrelation(1.0)(output, target + offset) - MseCorrelation(0.0)(output, target + offset)
    assert math.isclose(lack.item(), 3 * (1 - 2 / 3), rel_tol=1e-3)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_rows_for_a_correlation(rows):
    output, target = torch.full((rows, 3), 2.0, requires_grad=True), torch.zeros(rows, 3)
    value = MseCorrelation(1.5)(output, target)
    value.backward()
    assert value.item() == rows * (4.0 + 1.5)
    assert torch.allclose(output.grad, torch.full((rows, 3), 4.0 / 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_outputs_stay_finite(dtype):
    output = torch.tensor([[1e4], [-1e4], [1e4], [0.0]], dtype=dtype, requires_grad=True)
    target = torch.tensor([[1.0], [0.0], [0.0], [1.0]])
    value = MseCorrelation(1.5)(output, target)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, MseCorrelation(1.5)(output.float(), target), rtol=1e-6, atol=0)
    assert torch.isfinite(value)
    assert torch.isfinite(output.grad).all()


def test_divisor_counts_rows():
    count = MseCorrelation(1.5).num_targets(torch.zeros(7, 3))
    assert (count.shape, count.dtype, count.item()) == ((), torch.int64, 7)


def test_wrong_arguments_and_targets_are_reported():
    with pytest.raises(ConfigError, match=r"^correlation: must be at least 0, got -1"):
        MseCorrelation(-1.0)
    with pytest.raises(ValueError, match="must have one shape"):
        MseCorrelation(1.5)(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(RowError, match=r"^target: must be finite") as error:
        MseCorrelation(1.5, num_outputs=1).check(torch.tensor([[0.0], [math.inf]]))
    assert error.value.position == 1
