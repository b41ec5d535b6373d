"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from trainer.errors import ConfigError, explain
from trainer.optimizer.checks import check_not_negative, check_positive
from trainer.optimizer.groups import can_fuse, parameter_groups


def sgd(
    named_parameters: list[tuple[str, nn.Parameter]],
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    undecayed: Collection[str] = (),
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13).

    Each parameter group carries `param_names`, so that state can be saved by parameter name.

    Args:
        named_parameters: All parameters of the job; frozen ones are left out.
        lr: Base learning rate, above 0.
        momentum: Decay of the running sum of gradients, in [0, 1).
        nesterov: Whether the step looks ahead along the momentum, which then must be above 0.
        weight_decay: At least 0; added to the gradient times the parameter. See `parameter_groups` for what it spares.
        undecayed: Names of parameters that do not decay in spite of their shape; see `undecayed_names`.

    Raises:
        ConfigError: A value is out of range, or `nesterov` is on without momentum.
    """
    check_positive("lr", lr)
    if not 0 <= momentum < 1:
        raise ConfigError(explain("momentum", "must be at least 0 and below 1", value=momentum))
    if nesterov and momentum == 0:
        raise ConfigError(explain("nesterov", "needs a momentum above 0", value=nesterov))
    check_not_negative("weight_decay", weight_decay)
    groups = parameter_groups(named_parameters, weight_decay, undecayed)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov, fused=can_fuse(groups) or None)
