"""LAMB."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.constraints import BelowOne, NonNegative, Positive, validated
from trainer.optimizer.eager import eager
from trainer.optimizer.parameter_groups import ParameterGroup


@validated()
def lamb(
    params: list[ParameterGroup],
    lr: Positive,
    betas: tuple[BelowOne, BelowOne],
    eps: Positive,
    weight_decay: NonNegative,
) -> torch.optim.Optimizer:
    """Make LAMB: layer-wise adaptive moments for large batches.

    You et al. 2020, https://arxiv.org/abs/1904.00962, algorithm 2.

    With r = AdamW's direction + weight_decay * x, a matrix x moves by -lr * |x| / |r| * r, with 2-norms over the whole
    parameter; the factor is 1 if one of the norms is 0. Biases, gains and all other parameters with fewer than two axes
    move by -lr * r, as in the authors' code. The function phi of the norm is the identity.

    Args:
        params: The groups of `make_parameter_groups`; a group's own `lr` and `weight_decay` take precedence.
        lr: Base learning rate, greater than 0.
        betas: Decay of the running means of the gradient and of its square, each in [0, 1).
        eps: Added to the root of the running mean of squares, greater than 0.
        weight_decay: At least 0; multiplied by the parameter and added to the direction before its norm is computed.
    """
    return eager(Lamb)(params, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})


class Lamb(torch.optim.Optimizer):
    """LAMB. The state of a parameter is `exp_avg` and `exp_avg_sq` in its shape, and `step`, its number of updates."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        assert closure is None, "gradients must be computed before the step"
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                directions = self._directions(parameters, group)
                _scale_to_parameters(directions, parameters)
                torch._foreach_add_(parameters, directions, alpha=-group["lr"])

    def _directions(self, parameters: list[Tensor], group: ParameterGroup) -> list[Tensor]:
        beta1, beta2 = group["betas"]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self._advance(parameter) for parameter in parameters]
        means = [state["exp_avg"] for state in states]
        squares = [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(means, gradients, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - beta2)
        roots = torch._foreach_div(squares, [1 - beta2 ** state["step"] for state in states])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, group["eps"])
        directions = torch._foreach_div(means, [1 - beta1 ** state["step"] for state in states])
        torch._foreach_div_(directions, roots)
        torch._foreach_add_(directions, parameters, alpha=group["weight_decay"])
        return list(directions)

    def _advance(self, parameter: Tensor) -> ParameterGroup:
        state: ParameterGroup = self.state[parameter]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        state["step"] += 1
        return state


def _scale_to_parameters(directions: list[Tensor], parameters: list[Tensor]) -> None:
    scaled = [position for position, parameter in enumerate(parameters) if parameter.ndim >= 2]
    if not scaled:
        return
    directions = [directions[position] for position in scaled]
    sizes = torch.stack(torch._foreach_norm([parameters[position] for position in scaled]))
    lengths = torch.stack(torch._foreach_norm(directions))
    # Computed on the device: reading a norm would wait for it.
    factors = torch.where((sizes > 0) & (lengths > 0), sizes / lengths, 1.0)
    torch._foreach_mul_(directions, list(factors.unbind()))
