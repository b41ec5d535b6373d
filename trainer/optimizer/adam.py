"""Adam."""

from __future__ import annotations

from typing import Any

import torch

from trainer.errors import raise_if_any
from trainer.optimizer.parameter_groups import can_fuse
from trainer.ranges import not_negative, positive, two_below_one


def adam(
    params: list[dict[str, Any]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980); its weight decay is the L2 penalty's gradient.

    That gradient goes through the running means like any other, so weights with large gradients decay less; for a
    decay that is the same for all there is `adamw`.

    Args:
        params: The groups of `make_parameter_groups`; their own `lr` and `weight_decay` go first.
        lr: Base learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each in [0, 1).
        eps: Added to the root of the running mean of squares, above 0.
        weight_decay: At least 0; times the parameter, added to the gradient.

    Raises:
        ConfigError: A value is out of range.
    """
    raise_if_any(
        positive("lr", lr),
        two_below_one("betas", betas),
        positive("eps", eps),
        not_negative("weight_decay", weight_decay),
    )
    pair, fused = (float(betas[0]), float(betas[1])), can_fuse(params) or None
    return torch.optim.Adam(params, lr=lr, betas=pair, eps=eps, weight_decay=weight_decay, fused=fused)
