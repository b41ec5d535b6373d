"""Stochastic gradient descent."""

from __future__ import annotations

import torch

from trainer.constraints import BelowOne, NonNegative, Positive, Rule, validated
from trainer.distributed.sharding import is_sharded
from trainer.optimizer.eager import eager
from trainer.optimizer.parameter_groups import ParameterGroup, can_fuse


@validated(Rule("momentum > 0 or not nesterov", key="nesterov", problem="needs momentum greater than 0"))
def sgd(
    params: list[ParameterGroup],
    lr: Positive,
    momentum: BelowOne,
    nesterov: bool,
    weight_decay: NonNegative,
) -> torch.optim.Optimizer:
    """Make stochastic gradient descent with momentum (Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13).

    Args:
        params: The groups of `make_parameter_groups`; a group's own `lr` and `weight_decay` take precedence.
        lr: Base learning rate, greater than 0.
        momentum: Decay of the running sum of gradients, in [0, 1).
        nesterov: Use Nesterov momentum, which needs a momentum greater than 0.
        weight_decay: L2 penalty, at least 0; multiplied by the parameter and added to the gradient.

    Raises:
        ConfigError: `nesterov` is set without momentum.
    """
    # torch's fused kernel does not take shards.
    fused = (can_fuse(params) and not any(is_sharded(each) for group in params for _, each in group["params"])) or None
    return eager(torch.optim.SGD)(
        params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=fused
    )
