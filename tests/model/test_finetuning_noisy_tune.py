import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.errors import ConfigError
from trainer.model.finetuning import noisy_tune


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(
    strength=st.floats(0.01, 1.0),
    scale=st.floats(0.01, 100.0),
    mean=st.floats(-3.0, 3.0),
    seed=st.integers(0, 1000),
)
def test_noise_is_uniform_and_proportional_to_the_standard_deviation(
    strength: float, scale: float, mean: float, seed: int
) -> None:
    model = nn.Linear(200, 100, bias=False, dtype=torch.float64)
    nn.init.normal_(model.weight, mean, scale, generator=seeded(seed))
    before = model.weight.detach().clone()
    noisy_tune(model, strength, seeded(seed + 1))
    noise = (model.weight.detach() - before) / (strength * before.std())

    assert -0.5 - 1e-9 <= noise.min() < -0.499
    assert 0.499 < noise.max() <= 0.5 + 1e-9
    # Five standard errors of 20,000 draws.
    assert abs(noise.mean()) < 5 / math.sqrt(12 * 20_000)
    assert abs(noise.var() - 1 / 12) < 5 * math.sqrt(1 / 180 / 20_000)
    histogram = torch.histc(noise, 10, -0.5, 0.5)
    assert (histogram - 2000).abs().max() < 5 * math.sqrt(2000)


def test_each_parameter_uses_its_own_standard_deviation() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[1].weight.mul_(50)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    noisy_tune(model, 0.3, seeded(7))
    draws = seeded(7)

    for parameter, old in zip(model.parameters(), before, strict=True):
        uniform = torch.rand(old.shape, generator=draws, dtype=torch.float64) - 0.5
        deviation = math.sqrt(sum((x - old.mean().item()) ** 2 for x in old.flatten().tolist()) / (old.numel() - 1))
        torch.testing.assert_close(parameter.detach(), old + 0.3 * uniform * deviation, rtol=0, atol=1e-12)


def test_constant_parameters_do_not_change() -> None:
    model = nn.Module()
    model.norm = nn.LayerNorm(1000)
    model.single = nn.Parameter(torch.tensor([3.0]))
    model.scalar = nn.Parameter(torch.tensor(3.0))
    model.empty = nn.Parameter(torch.zeros(0, 4))
    # Rounding gives these a standard deviation of 8e-6.
    model.equal = nn.Parameter(torch.full((10,), 123.456))
    model.whole = nn.Parameter(torch.arange(4), requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    noisy_tune(model, 5.0, seeded())

    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_buffers_do_not_change() -> None:
    norm = nn.BatchNorm1d(8)
    norm.running_mean = torch.arange(8.0)
    noisy_tune(norm, 0.5, seeded())
    assert torch.equal(norm.running_mean, torch.arange(8.0))


def test_a_tied_weight_gets_its_noise_once() -> None:
    model, single = nn.Module(), nn.Embedding(20, 3)
    model.embedding = nn.Embedding(20, 3)
    model.head = nn.Linear(3, 20, bias=False)
    model.head.weight = model.embedding.weight
    single.load_state_dict(model.embedding.state_dict())
    noisy_tune(model, 0.2, seeded())
    noisy_tune(single, 0.2, seeded())

    assert model.head.weight is model.embedding.weight
    assert torch.equal(model.embedding.weight, single.weight)


def test_only_the_given_generator_is_used() -> None:
    first, second = nn.Linear(5, 5), nn.Linear(5, 5)
    second.load_state_dict(first.state_dict())
    torch.manual_seed(3)
    state = torch.get_rng_state()
    noisy_tune(first, 0.1, seeded(1))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    noisy_tune(second, 0.1, seeded(1))
    assert torch.equal(first.weight, second.weight)


def test_half_precision_weights_get_the_noise_of_float32_weights() -> None:
    half, single = nn.Linear(64, 64, dtype=torch.bfloat16), nn.Linear(64, 64)
    single.load_state_dict(half.state_dict())
    noisy_tune(half, 0.1, seeded())
    noisy_tune(single, 0.1, seeded())
    assert half.weight.dtype == torch.bfloat16
    assert torch.equal(half.weight, single.weight.bfloat16())


def test_requires_grad_does_not_change() -> None:
    model = nn.Linear(3, 3)
    model.bias.requires_grad_(False)
    noisy_tune(model, 0.1, seeded())
    assert model.weight.requires_grad
    assert model.weight.grad_fn is None
    assert not model.bias.requires_grad


def test_strength_0_uses_no_random_numbers() -> None:
    model, generator = nn.Linear(3, 3), seeded()
    before, state = model.weight.detach().clone(), generator.get_state()
    noisy_tune(model, 0.0, generator)
    assert torch.equal(model.weight, before)
    assert torch.equal(generator.get_state(), state)


def test_invalid_strength_is_rejected() -> None:
    for strength in (-0.1, math.inf, math.nan):
        with pytest.raises(ConfigError, match=rf"^noisy_tune: must be .*got {strength}"):
            noisy_tune(nn.Linear(2, 2), strength, seeded())
