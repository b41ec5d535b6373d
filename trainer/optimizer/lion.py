"""Lion."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.constraints import BelowOne, NonNegative, Positive, validated
from trainer.optimizer.eager import eager
from trainer.optimizer.parameter_groups import ParameterGroup


@validated()
def lion(
    params: list[ParameterGroup],
    lr: Positive,
    betas: tuple[BelowOne, BelowOne],
    weight_decay: NonNegative,
) -> torch.optim.Optimizer:
    """Make Lion: evolved sign momentum with decoupled weight decay (Chen et al. 2023, https://arxiv.org/abs/2302.06675).

    With the momentum m and the gradient g, the parameter moves by -lr * (sign(beta1 m + (1 - beta1) g) + weight_decay *
    parameter), then m becomes beta2 m + (1 - beta2) g. Every entry moves by the full learning rate, so the paper uses a
    learning rate 3 to 10 times smaller than AdamW's and a weight decay 3 to 10 times larger.

    Args:
        params: The groups of `make_parameter_groups`; a group's own `lr` and `weight_decay` take precedence.
        lr: Base learning rate, greater than 0.
        betas: Decay of the momentum in the direction of a step and in the stored momentum, each in [0, 1).
        weight_decay: Decoupled weight decay, at least 0; multiplied by the learning rate.
    """
    return eager(Lion)(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})


class Lion(torch.optim.Optimizer):
    """Lion. The state of a parameter is its momentum, `exp_avg`, in the shape of the parameter."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        assert closure is None, "gradients must be computed before the step"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(parameters, group["lr"], group["betas"], group["weight_decay"])

    def _update(self, parameters: list[Tensor], lr: float, betas: tuple[float, float], weight_decay: float) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        momenta = [self._momentum(parameter) for parameter in parameters]
        steps = torch._foreach_lerp(gradients, momenta, betas[0])
        torch._foreach_sign_(steps)
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_add_(parameters, steps, alpha=-lr)
        torch._foreach_lerp_(momenta, gradients, 1 - betas[1])

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["exp_avg"] = torch.zeros_like(parameter)
        momentum: Tensor = state["exp_avg"]
        return momentum
