"""Adversarial weight perturbation: one step along the gradient of every weight matrix."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor

from trainer.constraints import NonEmptyStr, NonNegativeInt, Positive, validated
from trainer.perturb.moved_weights import unit


class Awp:
    """Move each weight along its gradient by a share of its own size: W + gamma * |W| * g / |g|, with the 2-norm.

    g is the gradient of the mean loss of the whole step. Weights with one axis (biases, gains) do not move.

    Source: Wu et al. 2020, "Adversarial weight perturbation helps robust generalization",
    https://arxiv.org/abs/2004.05884, eq. 8 and 9 with one step. There only the gradient at the moved weights counts;
    here the gradient of the loss itself is added, as is usual in fine-tuning.

    Args:
        gamma: Size of the move relative to the weight, greater than 0.
        weight: Weight of the loss at the moved weights; the weight of the loss itself is 1.
        start_steps: Optimizer steps before the first move.
        targets: Patterns for names of the weights to move; None moves every trained weight with at least two axes.
    """

    perturbs: ClassVar[str] = "matrices"
    moves: ClassVar[int] = 1

    @validated()
    def __init__(
        self,
        *,
        gamma: Positive,
        weight: Positive,
        start_steps: NonNegativeInt,
        targets: Annotated[list[NonEmptyStr], MinLen(1)] | None,
    ) -> None:
        self.gamma = gamma
        self.weight = weight
        self.start_steps = start_steps
        self.targets = targets

    def __call__(self, weight: Tensor, offset: Tensor, gradient: Tensor) -> Tensor:
        """Return the next offset of a weight; all tensors have the weight's shape."""
        offset_norm: Tensor = self.gamma * torch.linalg.vector_norm(weight)
        return offset_norm * unit(gradient)
