"""Adversarial weight perturbation: one step along the gradient of every weight matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.constraints import Positive
from trainer.perturb.moved_weights import Move, unit


@dataclass(kw_only=True)
class Awp(Move):
    """Move each weight along its gradient by a share of its own size: W + gamma * |W| * g / |g|, with the 2-norm.

    g is the gradient of the mean loss of the whole step. Weights with one axis (biases, gains) do not move.

    Source: Wu et al. 2020, "Adversarial weight perturbation helps robust generalization",
    https://arxiv.org/abs/2004.05884, eq. 8 and 9 with one step. There only the gradient at the moved weights counts;
    here the gradient of the loss itself is added, as is usual in fine-tuning.

    Args:
        gamma: Size of the move relative to the weight, greater than 0.
    """

    perturbs: ClassVar[str] = "matrices"
    moves: ClassVar[int] = 1
    gamma: Positive

    def __call__(self, weight: Tensor, offset: Tensor, gradient: Tensor) -> Tensor:
        """Return the next offset of a weight; all tensors have the weight's shape."""
        offset_norm: Tensor = self.gamma * torch.linalg.vector_norm(weight)
        return offset_norm * unit(gradient)
