"""AdamW."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from trainer.errors import ConfigError, explain
from trainer.optimizer.checks import check_not_negative, check_positive
from trainer.optimizer.groups import can_fuse, parameter_groups


def adamw(
    named_parameters: list[tuple[str, nn.Parameter]],
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    undecayed: Collection[str] = (),
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101).

    Each parameter group carries `param_names`, so that state can be saved by parameter name.

    Args:
        named_parameters: All parameters of the job; frozen ones are left out.
        lr: Base learning rate, above 0.
        betas: Decay of the running means of the gradient and of its square, each in [0, 1).
        eps: Added to the root of the running mean of squares, above 0.
        weight_decay: At least 0; multiplied by the learning rate. See `parameter_groups` for what it spares.
        undecayed: Names of parameters that do not decay in spite of their shape; see `undecayed_names`.

    Raises:
        ConfigError: A value is out of range.
    """
    check_positive("lr", lr)
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ConfigError(explain("betas", "must be two values of at least 0 and below 1", value=betas))
    check_positive("eps", eps)
    check_not_negative("weight_decay", weight_decay)
    groups = parameter_groups(named_parameters, weight_decay, undecayed)
    return torch.optim.AdamW(groups, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=can_fuse(groups) or None)
