"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import torch

from trainer.errors import format_error, raise_if_any
from trainer.optimizer.parameter_groups import can_fuse
from trainer.ranges import below_one, not_negative, positive


def sgd(
    params: list[dict[str, Any]],
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13).

    Args:
        params: The groups of `make_parameter_groups`; their own `lr` and `weight_decay` go first.
        lr: Base learning rate, above 0.
        momentum: Decay of the running sum of gradients, in [0, 1).
        nesterov: Whether the step looks ahead along the momentum, which then must be above 0.
        weight_decay: At least 0; times the parameter, added to the gradient.

    Raises:
        ConfigError: A value is out of range, or `nesterov` is on without momentum.
    """
    raise_if_any(
        positive("lr", lr),
        below_one("momentum", momentum),
        format_error("nesterov", "needs a momentum above 0", value=nesterov) if nesterov and momentum == 0 else None,
        not_negative("weight_decay", weight_decay),
    )
    fused = can_fuse(params) or None
    return torch.optim.SGD(params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused)
