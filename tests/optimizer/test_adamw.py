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
)
from trainer.errors import ConfigError
from trainer.optimizer.adamw import adamw

VALUES = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.3}


def make(params, **changes):
    return adamw(params, **{**VALUES, **changes})


def evaluate_paper(start: torch.Tensor, steps: int, weight_decay: float) -> torch.Tensor:
    """Algorithm 2 of Loshchilov and Hutter 2019, the decay times the rate as in torch."""
    (beta1, beta2), value = VALUES["betas"], start.clone()
    m, v = torch.zeros_like(value), torch.zeros_like(value)
    for t in range(1, steps + 1):
        g = gradients(t, value)
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        value = value - VALUES["lr"] * weight_decay * value
        value = value - VALUES["lr"] * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + VALUES["eps"])
    return value


def test_updates_match_the_paper():
    assert_updates_match(make, evaluate_paper)


def test_groups_have_names_and_values():
    optimizer = make(groups(named_parameters(), 0.02, 0.3))
    assert isinstance(optimizer, torch.optim.AdamW)
    assert_groups(optimizer, lr=0.02, betas=(0.9, 0.99), eps=1e-8, fused=True)


def test_torch_chooses_the_kernel_if_none_is_fused():
    parameters = [("weight", nn.Parameter(torch.zeros(2, 2, device="meta")))]
    assert make(groups(parameters, 0.01, 0.3)).param_groups[0]["fused"] is None


def test_resumed_run_is_bitwise_equal():
    assert_resumes_bitwise_equal(make, 0.01, 0.3)


def test_values_out_of_range_raise():
    assert_out_of_range(
        make,
        ("lr", 0.0),
        ("lr", -1.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("betas", (0.9, 1.0)),
        ("betas", (-0.1, 0.9)),
        ("betas", (0.9,)),
        ("eps", 0.0),
        ("weight_decay", -0.1),
        ("weight_decay", math.nan),
    )


def test_values_out_of_range_are_reported_together():
    with pytest.raises(ConfigError) as error:
        make(groups(named_parameters(), 0.01, 0.3), lr=-1.0, betas=(1.0, 1.0), eps=0.0, weight_decay=-1.0)
    assert [message.split(":")[0] for message in error.value.messages] == ["lr", "betas", "eps", "weight_decay"]


def test_betas_may_be_a_list():
    optimizer = make(groups(named_parameters(), 0.01, 0.3), betas=[0.5, 0.6])
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.6)
