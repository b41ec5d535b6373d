import math

import pytest
import torch
from torch import nn

from tests.support.optimizer_reference import (
    assert_groups,
    assert_out_of_range,
    assert_resumes_bitwise_equal,
    assert_updates_match,
    gradients,
    groups,
    named_parameters,
    train,
    trained,
)
from trainer.optimizer.adamw import adamw
from trainer.optimizer.lamb import lamb

VALUES = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.3}


def make(params, **changes):
    return lamb(params, **{**VALUES, **changes})


def evaluate_paper(start: torch.Tensor, steps: int, weight_decay: float) -> torch.Tensor:
    """Algorithm 2 of You et al. 2020 with phi(z) = z; a vector is not scaled."""
    (beta1, beta2), x = VALUES["betas"], start.clone()
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t in range(1, steps + 1):
        g = gradients(t, x)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        r = (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + VALUES["eps"])
        step = r + weight_decay * x
        factor = x.norm() / step.norm() if x.ndim >= 2 else 1.0
        x = x - VALUES["lr"] * factor * step
    return x


def test_updates_match_the_paper():
    assert_updates_match(make, evaluate_paper)


def test_a_matrix_moves_by_the_learning_rate_times_its_norm():
    start, end = trained(make, 1, 0.01, 0.3)
    for name in ("weight", "table"):
        moved = (end[name] - start[name]).norm() / start[name].norm()
        assert moved.item() == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize(("value", "gradient"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_a_norm_of_zero_does_not_scale(value, gradient):
    ends = []
    for make_optimizer in (lamb, adamw):
        parameter = nn.Parameter(torch.full((2, 3), value, dtype=torch.float64))
        optimizer = make_optimizer(groups([("weight", parameter)], 0.01, 0.0), **{**VALUES, "weight_decay": 0.0})
        parameter.grad = torch.full_like(parameter, gradient)
        optimizer.step()
        ends.append(parameter.detach())
    assert torch.allclose(*ends, rtol=1e-12, atol=0)


def test_a_parameter_without_a_gradient_is_unchanged():
    parameters = named_parameters()
    optimizer = make(groups(parameters, 0.01, 0.3))
    before = parameters[0][1].detach().clone()
    optimizer.step()
    parameters[2][1].grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(parameters[0][1], before)
    assert len(optimizer.state) == 1
    # Each parameter counts its own updates.
    train(optimizer, parameters, 1, 1)
    assert [optimizer.state[parameter]["step"] for _, parameter in parameters] == [1, 1, 2]


def test_groups_have_names_and_values():
    optimizer = make(groups(named_parameters(), 0.02, 0.3), betas=[0.5, 0.6])
    assert_groups(optimizer, lr=0.02, betas=(0.5, 0.6))


def test_resumed_run_is_bitwise_equal():
    assert_resumes_bitwise_equal(make, 0.01, 0.3)


def test_values_out_of_range_raise():
    assert_out_of_range(
        make,
        ("lr", 0.0),
        ("lr", math.nan),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("eps", 0.0),
        ("weight_decay", -0.1),
    )
