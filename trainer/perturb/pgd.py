"""Projected gradient descent: several steps along the gradient of the embeddings, inside a ball."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from trainer.constraints import Count, Positive
from trainer.perturb.moved_weights import Move, unit


@dataclass(kw_only=True)
class Pgd(Move):
    """Move each embedding matrix `moves` times by `alpha` along its gradient, never further than `epsilon`.

    With the gradient g at the moved matrix and the 2-norm, an offset r becomes r + alpha * g / |g|, scaled down to the
    norm `epsilon` if it is longer; it is 0 at first. The step adds only the gradient after the last move.

    Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks",
    https://arxiv.org/abs/1706.06083, section 2.1, with the 2-norm instead of the largest magnitude.

    Args:
        epsilon: The largest 2-norm of the offset, greater than 0.
        alpha: The 2-norm of a move, greater than 0.
        moves: Number of moves; each needs a forward and backward pass.
    """

    perturbs: ClassVar[str] = "embeddings"
    epsilon: Positive
    alpha: Positive
    moves: Count

    def __call__(self, weight: Tensor, offset: Tensor, gradient: Tensor) -> Tensor:
        """Return the next offset of a weight; all tensors have the weight's shape."""
        moved = offset + self.alpha * unit(gradient)
        shrunk: Tensor = moved * (self.epsilon / torch.linalg.vector_norm(moved)).clamp(max=1.0)
        return shrunk
