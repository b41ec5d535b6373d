import math

import pytest
import torch

from tests.support.optimizer_reference import assert_resumes_bitwise_equal, gradients, groups, named_parameters, trained
from trainer.errors import ConfigError
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
    start, end = trained(make, 10, 0.01, 0.3)
    decay = {"weight": 0.3, "table": 0.0, "bias": 0.0}
    for name, value in end.items():
        assert torch.allclose(value, evaluate_paper(start[name], 10, decay[name]), rtol=1e-12, atol=1e-13)


def test_groups_have_names_and_values():
    optimizer = make(groups(named_parameters(), 0.02, 0.3), betas=[0.5, 0.6])
    assert isinstance(optimizer, torch.optim.Adam)
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"], ["table", "bias"]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["fused"]) == (0.02, (0.5, 0.6), 1e-8, True)
        assert not group["decoupled_weight_decay"]


def test_resumed_run_is_bitwise_equal():
    assert_resumes_bitwise_equal(make, 0.01, 0.3)


def test_values_out_of_range_raise():
    for name, value in [
        ("lr", 0.0),
        ("lr", math.nan),
        ("betas", (0.9, 1.0)),
        ("betas", (0.9,)),
        ("eps", 0.0),
        ("weight_decay", -0.1),
    ]:
        with pytest.raises(ConfigError, match=rf"^{name}: must be .*, got "):
            make(groups(named_parameters(), 0.01, 0.3), **{name: value})
