"""Muon for the hidden matrices, AdamW for all other parameters."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Literal

import torch
from annotated_types import Interval

from trainer.constraints import BelowOne, NonNegative, Positive, validated
from trainer.errors import ConfigError, format_error
from trainer.optimizer.eager import eager
from trainer.optimizer.parameter_groups import ParameterGroup, can_fuse


@validated()
def muon(
    params: list[ParameterGroup],
    lr: Positive,
    momentum: BelowOne,
    nesterov: bool,
    ns_steps: Annotated[int, Interval(ge=1, le=99)],
    adjust_lr_fn: Literal["match_rms_adamw", "original"],
    betas: tuple[BelowOne, BelowOne],
    eps: Positive,
    weight_decay: NonNegative,
    hidden: Collection[str] = (),
) -> torch.optim.Optimizer:
    """Make Muon (momentum orthogonalized by a Newton-Schulz iteration) for the hidden matrices and AdamW for the rest.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, https://arxiv.org/abs/2502.16982.
    As in both papers, AdamW trains embeddings, norms, biases and the output layer: each row of a table of tokens or
    classes belongs to one item, and a step with equal singular values suits such rows less. AdamW also trains all
    parameters without exactly two axes, such as convolutions, which torch's Muon does not support.

    The step of an A x B matrix is the learning rate times a factor times a matrix with singular values near 1, whose
    entries are near 1 / sqrt(max(A, B)). With `match_rms_adamw` the factor is 0.2 sqrt(max(A, B)): entries move about
    as far as AdamW's, so one learning rate and weight decay fit both. With `original` it is sqrt(max(1, A / B)), which
    needs larger learning rates; give AdamW's parameters their own with `overrides`.

    Args:
        params: The groups of `make_parameter_groups`; a group's own `lr` and `weight_decay` take precedence.
        lr: Base learning rate of both, greater than 0.
        momentum: Decay of Muon's running mean of gradients, in [0, 1).
        nesterov: Use Nesterov momentum in Muon.
        ns_steps: Newton-Schulz iterations, 1 to 99.
        adjust_lr_fn: Factor on Muon's learning rate.
        betas: AdamW's decay of the running means of the gradient and of its square, each in [0, 1).
        eps: Added by AdamW to the root of the running mean of squares, greater than 0.
        weight_decay: Decoupled weight decay, at least 0; multiplied by the learning rate, before Muon's factor.
        hidden: Names of the hidden matrices, from `hidden_matrix_names`.

    Raises:
        ConfigError: No hidden matrix is trained.
    """
    matrices, others = _select(params, hidden, inside=True), _select(params, hidden, inside=False)
    if not matrices:
        problem = "the model has no hidden matrix that Muon could train"
        raise ConfigError(format_error("_target_", problem, "Use optimizer=adamw", value="trainer.optimizer.muon.muon"))
    shared: ParameterGroup = {"lr": lr, "weight_decay": weight_decay}
    newton_schulz: ParameterGroup = {"nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
    parts: list[torch.optim.Optimizer] = [
        eager(torch.optim.Muon)(matrices, momentum=momentum, **newton_schulz, **shared)
    ]
    if others:
        adam: ParameterGroup = {"betas": tuple(betas), "eps": eps, "fused": can_fuse(others) or None}
        parts.append(eager(torch.optim.AdamW)(others, **adam, **shared))
    return eager(CombinedOptimizer)(parts)


class CombinedOptimizer(torch.optim.Optimizer):
    """Several optimizers combined into one, with all their groups in order and one shared state."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not supported
        assert closure is None, "gradients must be computed before the step"
        for part in self.parts:
            part.step()

    def __getstate__(self) -> ParameterGroup:
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: ParameterGroup) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]


def _select(params: list[ParameterGroup], hidden: Collection[str], *, inside: bool) -> list[ParameterGroup]:
    kept = [[pair for pair in group["params"] if (pair[0] in hidden) == inside] for group in params]
    return [{**group, "params": pairs} for group, pairs in zip(params, kept, strict=True) if pairs]
