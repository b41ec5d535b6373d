import math

import pytest
import torch

from tests.support.optimizer_reference import assert_resumes_bitwise_equal, gradients, groups, named_parameters, trained
from trainer.errors import ConfigError
from trainer.optimizer.sgd import sgd

VALUES = {"lr": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.3}


def make(params, **changes):
    return sgd(params, **{**VALUES, **changes})


def update_by_hand(
    start: torch.Tensor, steps: int, weight_decay: float, momentum: float, nesterov: bool
) -> torch.Tensor:
    value, velocity = start.clone(), torch.zeros_like(start)
    for step in range(1, steps + 1):
        g = gradients(step, value) + weight_decay * value
        velocity = momentum * velocity + g
        value = value - VALUES["lr"] * (g + momentum * velocity if nesterov else velocity)
    return value


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_updates_match_the_rule(momentum, nesterov):
    start, end = trained(lambda params: make(params, momentum=momentum, nesterov=nesterov), 10, 0.1, 0.3)
    decay = {"weight": 0.3, "table": 0.0, "bias": 0.0}
    for name, value in end.items():
        expected = update_by_hand(start[name], 10, decay[name], momentum, nesterov)
        assert torch.allclose(value, expected, rtol=1e-12, atol=1e-13)


def test_groups_have_names_and_values():
    optimizer = make(groups(named_parameters(), 0.2, 0.3))
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"], ["table", "bias"]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["momentum"], group["nesterov"], group["fused"]) == (0.2, 0.9, False, True)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, True)])
def test_resumed_run_is_bitwise_equal(momentum, nesterov):
    assert_resumes_bitwise_equal(lambda params: make(params, momentum=momentum, nesterov=nesterov), 0.1, 0.3)


def test_values_out_of_range_raise():
    for name, value in [
        ("lr", 0.0),
        ("lr", math.nan),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -0.1),
    ]:
        with pytest.raises(ConfigError, match=rf"^{name}: must be .*, got "):
            make(groups(named_parameters(), 0.1, 0.3), **{name: value})


def test_nesterov_needs_momentum():
    with pytest.raises(ConfigError, match=r"^nesterov: needs momentum greater than 0, got True"):
        make(groups(named_parameters(), 0.1, 0.3), momentum=0.0, nesterov=True)
