"""Adafactor."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Lt

from trainer.constraints import AtLeastOne, NonNegative, Positive, validated
from trainer.optimizer.eager import eager
from trainer.optimizer.parameter_groups import ParameterGroup


@validated()
def adafactor(
    params: list[ParameterGroup],
    lr: Positive,
    beta2_decay: Annotated[float, Lt(0)],
    eps: tuple[Positive | None, Positive],
    d: AtLeastOne,
    weight_decay: NonNegative,
) -> torch.optim.Optimizer:
    """Make Adafactor: Adam's scaling from row and column means of squared gradients, n + m values for an n x m matrix.

    Shazeer and Stern 2018, https://arxiv.org/abs/1804.04235, without the first moment. The paper sets the learning rate
    itself (a relative step of min(0.01, 1 / sqrt(t))); here `lr` and the schedule set it, and torch keeps 1 / sqrt(t)
    as an upper bound: update t moves a parameter by max(eps2, RMS of the parameter) * min(lr, 1 / sqrt(t)) times its
    scaled gradient. With lr = 0.01 the bound applies from update 10,000 on: a constant learning rate decays after
    1 / lr^2 updates.

    Args:
        params: The groups of `make_parameter_groups`; a group's own `lr` and `weight_decay` take precedence.
        lr: Base learning rate, greater than 0, relative to the size of the parameters.
        beta2_decay: c, less than 0: the decay of the running means of squares is 1 - t^c at update t.
        eps: Smallest root mean square that a gradient is divided by (None: the float type's epsilon) and smallest
            parameter size used in a step, both greater than 0.
        d: Largest root mean square of a scaled gradient, at least 1; larger ones are scaled down.
        weight_decay: Decoupled weight decay, at least 0; multiplied by the learning rate.
    """
    pair, optimizer = (eps[0], eps[1]), eager(torch.optim.Adafactor)
    return optimizer(params, lr=lr, beta2_decay=beta2_decay, eps=pair, d=d, weight_decay=weight_decay)
