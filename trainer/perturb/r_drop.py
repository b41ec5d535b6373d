"""R-Drop: two forward passes with different dropout masks must agree."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor

from trainer.constraints import NonNegativeInt, Positive, validated


class RDrop:
    """Add alpha times the divergence between the outputs of two dropout masks to the mean of the two losses.

    The divergence of a target is the mean of both Kullback-Leibler divergences, (KL(p || q) + KL(q || p)) / 2, between
    the probabilities p and q of the two passes: the softmax over classes, or the sigmoid of each label.

    Source: Liang et al. 2021, "R-Drop: regularized dropout for neural networks", https://arxiv.org/abs/2106.14448,
    eq. 2 and 3; the loss is the mean of the two losses, as in the authors' code, instead of their sum.

    Args:
        target: The type of the targets in training.
        alpha: Weight of the divergence, greater than 0.
        start_steps: Optimizer steps before the first second pass.
    """

    perturbs: ClassVar[str] = "outputs"
    targets: ClassVar[tuple[str, ...]] = ("class", "shares", "multi_hot")

    @validated()
    def __init__(
        self, target: Literal["class", "shares", "multi_hot"], *, alpha: Positive, start_steps: NonNegativeInt
    ) -> None:
        self.alpha = alpha
        self.start_steps = start_steps
        self.target = target

    def __call__(self, first: Tensor, second: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
        """Return alpha times the sum of the divergences of all targets, float32 (float64 for float64 scores), shape ().

        Args:
            first: Scores of the first pass (..., C).
            second: Scores of the second pass (..., C).
            target: Classes (...,), shares (..., C), or labels (..., C).
            ignore_index: Targets of this value are left out.
        """
        dtype = torch.promote_types(first.dtype, torch.float32)
        first, second = first.to(dtype), second.to(dtype)
        probabilities = torch.sigmoid if self.target == "multi_hot" else _softmax
        # sum (p - q) (log p - log q) / 2 needs no logarithm: what is common to a row meets sum (p - q) = 0.
        terms = (probabilities(first) - probabilities(second)) * (first - second) / 2
        if self.target != "multi_hot":
            terms = terms.sum(dim=-1)
        if ignore_index is not None and self.target != "shares":
            terms = terms.masked_fill(target == ignore_index, 0.0)
        return self.alpha * terms.sum()


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(dim=-1)
