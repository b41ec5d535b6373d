"""Projected gradient descent: several steps along the gradient of the embeddings, inside a ball."""

from __future__ import annotations

from typing import Annotated, ClassVar

import torch
from annotated_types import MinLen
from torch import Tensor

from trainer.constraints import Count, NonEmptyStr, NonNegativeInt, Positive, validated
from trainer.perturb.moved_weights import unit


class Pgd:
    """Move each embedding matrix `moves` times by `alpha` along its gradient, never further than `epsilon`.

    With the gradient g at the moved matrix and the 2-norm, an offset r becomes r + alpha * g / |g|, scaled down to the
    norm `epsilon` if it is longer; it is 0 at first. The step adds only the gradient after the last move.

    Source: Madry et al. 2018, "Towards deep learning models resistant to adversarial attacks",
    https://arxiv.org/abs/1706.06083, section 2.1, with the 2-norm instead of the largest magnitude.

    Args:
        epsilon: The largest 2-norm of the offset, greater than 0.
        alpha: The 2-norm of a move, greater than 0.
        moves: Number of moves; each needs a forward and backward pass.
        weight: Weight of the loss at the moved embeddings; the weight of the loss itself is 1.
        start_steps: Optimizer steps before the first move.
        targets: Patterns for names of the weights to move; None moves the embeddings of tokens.
    """

    perturbs: ClassVar[str] = "embeddings"

    @validated()
    def __init__(
        self,
        *,
        epsilon: Positive,
        alpha: Positive,
        moves: Count,
        weight: Positive,
        start_steps: NonNegativeInt,
        targets: Annotated[list[NonEmptyStr], MinLen(1)] | None,
    ) -> None:
        self.epsilon = epsilon
        self.alpha = alpha
        self.moves = moves
        self.weight = weight
        self.start_steps = start_steps
        self.targets = targets

    def __call__(self, weight: Tensor, offset: Tensor, gradient: Tensor) -> Tensor:
        """Return the next offset of a weight; all tensors have the weight's shape."""
        moved = offset + self.alpha * unit(gradient)
        shrunk: Tensor = moved * (self.epsilon / torch.linalg.vector_norm(moved)).clamp(max=1.0)
        return shrunk
