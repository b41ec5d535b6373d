"""The fast gradient method: one step along the gradient of the embeddings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from trainer.constraints import Positive
from trainer.perturb.moved_weights import Move, unit


@dataclass(kw_only=True)
class Fgm(Move):
    """Move each embedding matrix by `epsilon` along its gradient: E + epsilon * g / |g|, with the 2-norm.

    g is the gradient of the mean loss of the whole step, so neither micro-batches nor devices change it. Rows of tokens
    that are not in the step have no gradient and do not move.

    Source: Miyato et al. 2017, "Adversarial training methods for semi-supervised text classification",
    https://arxiv.org/abs/1605.07725, eq. 4 to 6, there with a norm for each sample instead of one for the step.

    Args:
        epsilon: The 2-norm of the move, greater than 0.
    """

    perturbs: ClassVar[str] = "embeddings"
    moves: ClassVar[int] = 1
    epsilon: Positive

    def __call__(self, weight: Tensor, offset: Tensor, gradient: Tensor) -> Tensor:
        """Return the next offset of a weight; all tensors have the weight's shape."""
        return self.epsilon * unit(gradient)
