"""AdamW."""

from __future__ import annotations

import torch

from trainer.constraints import BelowOne, NonNegative, Positive, validated
from trainer.optimizer.eager import eager
from trainer.optimizer.parameter_groups import ParameterGroup, can_fuse


@validated()
def adamw(
    params: list[ParameterGroup],
    lr: Positive,
    betas: tuple[BelowOne, BelowOne],
    eps: Positive,
    weight_decay: NonNegative,
) -> torch.optim.Optimizer:
    """Make AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    Args:
        params: The groups of `make_parameter_groups`; a group's own `lr` and `weight_decay` take precedence.
        lr: Base learning rate, greater than 0.
        betas: Decay of the running means of the gradient and of its square, each in [0, 1).
        eps: Added to the root of the running mean of squares, greater than 0.
        weight_decay: Decoupled weight decay, at least 0; multiplied by the learning rate.
    """
    pair, fused = (float(betas[0]), float(betas[1])), can_fuse(params) or None
    return eager(torch.optim.AdamW)(params, lr=lr, betas=pair, eps=eps, weight_decay=weight_decay, fused=fused)
