"""Adafactor."""

from __future__ import annotations

from typing import Any

import torch

from trainer.errors import format_error, raise_if_any
from trainer.ranges import not_negative, positive


def adafactor(
    params: list[dict[str, Any]],
    lr: float,
    beta2_decay: float,
    eps: tuple[float | None, float],
    d: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Adam's scaling from the row and column means of the squared gradients: memory of n + m for an n x m matrix.

    Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235, without their first moment. The paper sets the rate itself
    (a relative step of min(0.01, 1 / sqrt(t))); here `lr` and the schedule do, and torch keeps 1 / sqrt(t) as a bound:
    update t moves a parameter by max(eps2, RMS of the parameter) * min(lr, 1 / sqrt(t)) times its scaled gradient. With
    lr = 0.01 the bound is met from update 10,000 on; a constant rate is not constant beyond 1 / lr^2 updates.

    Args:
        params: The groups of `make_parameter_groups`; their own `lr` and `weight_decay` go first.
        lr: Base learning rate, above 0, relative to the size of the parameters.
        beta2_decay: c, below 0: the running means of squares keep 1 - t^c at update t.
        eps: The least root mean square that a gradient is divided by, above 0 (None: the float type's epsilon), and the
            least size of a parameter in its step, above 0.
        d: A scaled gradient of a larger root mean square is scaled down to it; at least 1.
        weight_decay: At least 0; multiplied by the learning rate, apart from the gradient.

    Raises:
        ConfigError: A value is out of range.
    """
    raise_if_any(
        positive("lr", lr),
        None if -float("inf") < beta2_decay < 0 else format_error("beta2_decay", "must be below 0", value=beta2_decay),
        _eps_fault(eps),
        None if 1 <= d < float("inf") else format_error("d", "must be finite and at least 1", value=d),
        not_negative("weight_decay", weight_decay),
    )
    pair = (eps[0], eps[1])
    return torch.optim.Adafactor(params, lr=lr, beta2_decay=beta2_decay, eps=pair, d=d, weight_decay=weight_decay)


def _eps_fault(eps: tuple[float | None, float]) -> str | None:
    if len(eps) == 2 and (eps[0] is None or positive("", eps[0]) is None) and positive("", eps[1]) is None:
        return None
    return format_error("eps", "must be two values above 0, the first of which may be null", value=eps)
