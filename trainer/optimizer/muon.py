"""Muon for the hidden matrices, AdamW for all else."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Literal

import torch

from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.optimizer.parameter_groups import can_fuse
from trainer.ranges import below_one, not_negative, positive, two_below_one


def muon(
    params: list[dict[str, Any]],
    lr: float,
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    adjust_lr_fn: Literal["match_rms_adamw", "original"],
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    hidden: Collection[str] = (),
) -> torch.optim.Optimizer:
    """Momentum made orthogonal by a Newton-Schulz iteration, for the hidden matrices; AdamW for every other parameter.

    Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; Liu et al. 2025, https://arxiv.org/abs/2502.16982.
    Embeddings, norms, biases and the output layer are AdamW's, as the authors of both have it: the rows of a table of
    tokens or of classes stand for one thing each, and a step that treats all directions alike suits them less. So is
    whatever has not two axes, as torch's Muon takes nothing else: a convolution stays with AdamW.

    The step of an A x B matrix is the rate times a factor times a matrix whose singular values are near 1, hence its
    entries near 1 / sqrt(max(A, B)). The factor is 0.2 sqrt(max(A, B)) with `match_rms_adamw`: entries move about as
    far as AdamW's, and one rate and weight decay serve both. It is sqrt(max(1, A / B)) with `original`, whose rates are
    larger; AdamW's parameters then need their own, by `overrides`.

    Args:
        params: The groups of `make_parameter_groups`; their own `lr` and `weight_decay` go first.
        lr: Base learning rate of both, above 0.
        momentum: Decay of Muon's running mean of gradients, in [0, 1).
        nesterov: Whether Muon looks ahead along the momentum.
        ns_steps: Newton-Schulz iterations, 1 to 99.
        adjust_lr_fn: Factor on Muon's rate.
        betas: AdamW's; decay of the running means of the gradient and of its square, each in [0, 1).
        eps: AdamW's; added to the root of the running mean of squares, above 0.
        weight_decay: At least 0; multiplied by the learning rate, before Muon's factor.
        hidden: Names of the hidden matrices; see `hidden_matrix_names`.

    Raises:
        ConfigError: A value is out of range, or no hidden matrix is trained.
    """
    raise_if_any(
        positive("lr", lr),
        below_one("momentum", momentum),
        None if 1 <= ns_steps <= 99 else format_error("ns_steps", "must be between 1 and 99", value=ns_steps),
        two_below_one("betas", betas),
        positive("eps", eps),
        not_negative("weight_decay", weight_decay),
    )
    matrices, others = _part(params, hidden, inside=True), _part(params, hidden, inside=False)
    if not matrices:
        problem = "the model has no hidden matrix that Muon could train"
        raise ConfigError(
            format_error("_target_", problem, "Take optimizer=adamw", value="trainer.optimizer.muon.muon")
        )
    shared: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay}
    newton_schulz: dict[str, Any] = {"nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust_lr_fn}
    parts: list[torch.optim.Optimizer] = [torch.optim.Muon(matrices, momentum=momentum, **newton_schulz, **shared)]
    if others:
        adam: dict[str, Any] = {"betas": tuple(betas), "eps": eps, "fused": can_fuse(others) or None}
        parts.append(torch.optim.AdamW(others, **adam, **shared))
    return Joined(parts)


class Joined(torch.optim.Optimizer):
    """Several optimizers that are one: their groups, in order, and one state."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are never given
        assert closure is None, "gradients are taken before a step"
        for part in self.parts:
            part.step()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        groups = iter(self.param_groups)
        for part in self.parts:
            part.state = self.state
            part.param_groups = [next(groups) for _ in part.param_groups]


def _part(params: list[dict[str, Any]], hidden: Collection[str], *, inside: bool) -> list[dict[str, Any]]:
    kept = [[pair for pair in group["params"] if (pair[0] in hidden) == inside] for group in params]
    return [{**group, "params": pairs} for group, pairs in zip(params, kept, strict=True) if pairs]
