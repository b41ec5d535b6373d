import math

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
from trainer.optimizer.adam import adam

VALUES = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.3}


def make(params, **changes):
    return adam(params, **{**VALUES, **changes})


def evaluate_paper(start: torch.Tensor, steps: int, weight_decay: float) -> torch.Tensor:
    """Algorithm 1 of Kingma and Ba 2015 on the gradient of loss + weight_decay / 2 * |parameter|^2."""
    (beta1, beta2), value = VALUES["betas"], start.clone()
    m, v = torch.zeros_like(value), torch.zeros_like(value)
    for t in range(1, steps + 1):
        g = gradients(t, value) + weight_decay * value
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        value = value - VALUES["lr"] * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + VALUES["eps"])
    return value


def test_updates_match_the_paper():
    assert_updates_match(make, evaluate_paper)


def test_groups_have_names_and_values():
    optimizer = make(groups(named_parameters(), 0.02, 0.3), betas=[0.5, 0.6])
    assert isinstance(optimizer, torch.optim.Adam)
    assert_groups(optimizer, lr=0.02, betas=(0.5, 0.6), eps=1e-8, fused=True, decoupled_weight_decay=False)


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
