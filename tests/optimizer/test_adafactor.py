import math
from functools import partial

import pytest
import torch

from tests.support.optimizer_reference import (
    assert_out_of_range,
    assert_resumes_bitwise_equal,
    assert_updates_match,
    gradients,
    groups,
    named_parameters,
    train,
)
from trainer.optimizer.adafactor import adafactor

VALUES = {"lr": 0.3, "beta2_decay": -0.8, "eps": (None, 1e-3), "d": 1.0, "weight_decay": 0.3}


def make(params, **changes):
    return adafactor(params, **{**VALUES, **changes})


def rms(value: torch.Tensor) -> torch.Tensor:
    return (value * value).mean().sqrt()


def evaluate_paper(start: torch.Tensor, steps: int, weight_decay: float, d: float) -> torch.Tensor:
    """Algorithms 4 and 5 of Shazeer and Stern 2018 with a given rate and a decay apart from the gradient."""
    value, row, column, square = start.clone(), 0.0, 0.0, 0.0
    for t in range(1, steps + 1):
        g = gradients(t, value)
        kept = 1 - t ** VALUES["beta2_decay"]
        if g.ndim > 1:
            row = kept * row + (1 - kept) * (g * g).sum(dim=1, keepdim=True)
            column = kept * column + (1 - kept) * (g * g).sum(dim=0, keepdim=True)
            v = row * column / row.sum()
        else:
            square = kept * square + (1 - kept) * g * g
            v = square
        step = g / v.sqrt()
        step = step / torch.clamp(rms(step) / d, min=1.0)
        size = torch.clamp(rms(value), min=VALUES["eps"][1]) * min(VALUES["lr"], 1 / math.sqrt(t))
        value = value - VALUES["lr"] * weight_decay * value - size * step
    return value


# 1 / sqrt(t) is below the learning rate from update 12 on.
@pytest.mark.parametrize("d", [1.0, 2.0])
def test_updates_match_the_paper(d):
    assert_updates_match(partial(make, d=d), partial(evaluate_paper, d=d), steps=20, lr=0.3, rtol=1e-10, atol=1e-12)


def test_the_state_of_a_matrix_is_a_row_and_a_column():
    parameters = named_parameters()
    optimizer = make(groups(parameters, 0.02, 0.3))
    train(optimizer, parameters, 1, 1)
    shapes = {
        name: {key: tuple(value.shape) for key, value in optimizer.state[parameter].items()}
        for name, parameter in parameters
    }
    assert shapes["weight"] == {"step": (), "row_var": (3, 1), "col_var": (1, 4)}
    assert shapes["bias"] == {"step": (), "variance": (3,)}
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.02, 0.3), (0.02, 0.0)]


def test_resumed_run_is_bitwise_equal():
    assert_resumes_bitwise_equal(make, 0.3, 0.3)


def test_values_out_of_range_raise():
    assert_out_of_range(
        make,
        ("lr", 0.0),
        ("beta2_decay", 0.0),
        ("beta2_decay", -math.inf),
        ("eps", (None, 0.0)),
        ("eps", (0.0, 1e-3)),
        ("eps", (1e-3,)),
        ("d", 0.9),
        ("d", math.nan),
        ("weight_decay", -0.1),
    )
