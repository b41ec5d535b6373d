import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.optimizer_reference import (
    assert_groups,
    assert_out_of_range,
    assert_resumes_bitwise_equal,
    assert_updates_match,
    gradients,
    groups,
    named_parameters,
    train,
)
from trainer.optimizer.lion import lion

VALUES = {"lr": 0.01, "betas": (0.9, 0.99), "weight_decay": 0.3}


def make(params, **changes):
    return lion(params, **{**VALUES, **changes})


def evaluate_paper(start: torch.Tensor, steps: int, weight_decay: float, betas: tuple[float, float]) -> torch.Tensor:
    """Algorithm 2 of Chen et al. 2023."""
    value, m = start.clone(), torch.zeros_like(start)
    for t in range(1, steps + 1):
        g = gradients(t, value)
        c = betas[0] * m + (1 - betas[0]) * g
        value = value - VALUES["lr"] * (torch.sign(c) + weight_decay * value)
        m = betas[1] * m + (1 - betas[1]) * g
    return value


@pytest.mark.parametrize("betas", [(0.9, 0.99), (0.0, 0.0)])
def test_updates_match_the_paper(betas):
    assert_updates_match(partial(make, betas=betas), partial(evaluate_paper, betas=betas))


@settings(max_examples=30)
@given(st.floats(1e-6, 1e6))
def test_the_scale_of_the_gradient_does_not_matter(scale):
    ends = []
    for factor in (1.0, scale):
        parameters = named_parameters()
        optimizer = make(groups(parameters, 0.01, 0.0))
        for _, parameter in parameters:
            parameter.grad = gradients(1, parameter) * factor
        optimizer.step()
        ends.append([parameter.detach() for _, parameter in parameters])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_a_parameter_without_a_gradient_is_unchanged():
    parameters = named_parameters()
    optimizer = make(groups(parameters, 0.01, 0.3))
    before = [parameter.detach().clone() for _, parameter in parameters]
    optimizer.step()
    parameters[2][1].grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(parameters[0][1], before[0])
    assert not torch.equal(parameters[2][1], before[2])
    assert len(optimizer.state) == 1


def test_groups_and_state():
    parameters = named_parameters()
    optimizer = make(groups(parameters, 0.02, 0.3), betas=[0.5, 0.6])
    train(optimizer, parameters, 1, 1)
    assert_groups(optimizer, lr=0.02, betas=(0.5, 0.6))
    assert all(optimizer.state[parameter].keys() == {"exp_avg"} for _, parameter in parameters)


def test_resumed_run_is_bitwise_equal():
    assert_resumes_bitwise_equal(make, 0.01, 0.3)


def test_values_out_of_range_raise():
    assert_out_of_range(
        make,
        ("lr", 0.0),
        ("lr", math.inf),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("weight_decay", -0.1),
    )
