import math
from functools import partial

import pytest
import torch

from tests.support.optimizer_reference import (
    assert_groups,
    assert_out_of_range,
    assert_resumes_bitwise_equal,
    assert_updates_match,
    gradients,
    groups,
    named_parameters,
)
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
    options = {"momentum": momentum, "nesterov": nesterov}
    assert_updates_match(partial(make, **options), partial(update_by_hand, **options), lr=0.1)


def test_groups_have_names_and_values():
    optimizer = make(groups(named_parameters(), 0.2, 0.3))
    assert isinstance(optimizer, torch.optim.SGD)
    assert_groups(optimizer, lr=0.2, momentum=0.9, nesterov=False, fused=True)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, True)])
def test_resumed_run_is_bitwise_equal(momentum, nesterov):
    assert_resumes_bitwise_equal(lambda params: make(params, momentum=momentum, nesterov=nesterov), 0.1, 0.3)


def test_values_out_of_range_raise():
    assert_out_of_range(
        make,
        ("lr", 0.0),
        ("lr", math.nan),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("weight_decay", -0.1),
    )


def test_nesterov_needs_momentum():
    with pytest.raises(ConfigError, match=r"^nesterov: needs momentum greater than 0, got true"):
        make(groups(named_parameters(), 0.1, 0.3), momentum=0.0, nesterov=True)
