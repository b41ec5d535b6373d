import math

import pytest
import torch

from tests.optimizer.reference import gradients, named_parameters
from trainer.errors import ConfigError
from trainer.optimizer.sgd import sgd

VALUES = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.3}


def by_hand(start: torch.Tensor, steps: int, weight_decay: float, momentum: float, nesterov: bool) -> torch.Tensor:
    value, velocity = start.clone(), torch.zeros_like(start)
    for step in range(1, steps + 1):
        g = gradients(step, value) + weight_decay * value
        velocity = momentum * velocity + g
        value = value - VALUES["lr"] * (g + momentum * velocity if nesterov else velocity)
    return value


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_updates_are_the_rules(momentum, nesterov):
    parameters = named_parameters()
    start = {name: parameter.detach().clone() for name, parameter in parameters}
    values = {**VALUES, "momentum": momentum, "nesterov": nesterov}
    optimizer = sgd(parameters, **values, undecayed={"table"})
    for step in range(1, 11):
        for _, parameter in parameters:
            parameter.grad = gradients(step, parameter)
        optimizer.step()
    decay = {"weight": 0.3, "table": 0.0, "bias": 0.0}
    for name, parameter in parameters:
        expected = by_hand(start[name], 10, decay[name], momentum, nesterov)
        assert torch.allclose(parameter, expected, rtol=1e-12, atol=1e-13)


def test_groups_carry_names_and_values():
    optimizer = sgd(named_parameters(), **VALUES, undecayed={"table"})
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"], ["table", "bias"]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"], group["fused"]) == (0.1, 0.9, False, True)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -0.1),
    ],
)
def test_values_out_of_range(name, value):
    with pytest.raises(ConfigError, match=rf"^{name}: must be .*, got "):
        sgd(named_parameters(), **{**VALUES, name: value})


def test_nesterov_needs_momentum():
    with pytest.raises(ConfigError, match=r"^nesterov: needs a momentum above 0, got True"):
        sgd(named_parameters(), **{**VALUES, "momentum": 0.0, "nesterov": True})
