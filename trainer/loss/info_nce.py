"""InfoNCE: contrastive loss over the samples of a batch."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.constraints import Positive, validated
from trainer.loss.classification import promote_to_float32
from trainer.loss.regression import count_tensor
from trainer.targets import check_views


class InfoNce(nn.Module):
    """Cross entropy of finding each anchor's positive among the positives and hard negatives of the whole batch.

    Van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, eq. 4, with cosines over a temperature t as scores, as
    in SimCSE (Gao et al. 2021, https://arxiv.org/abs/2104.08821, eqs. 1 and 5). Each sample has K views: the first is
    its anchor a, the second its positive p, the others are hard negatives. With the candidates c, which are the B
    positives and the B * (K - 2) hard negatives, the loss of sample i is

        -log(exp(cos(a_i, p_i) / t) / sum_c exp(cos(a_i, c) / t))

    `symmetric` takes the mean of this loss and of the reverse one: finding the anchor of each positive among the B
    anchors. The cosine with a zero vector is 0. A sampler may draw a sample twice for a batch: the candidates of its
    other draws are no negatives and are left out.

    This loss is a statistic of the batch: its other samples are the negatives. `num_targets`, the divisor of a step,
    counts samples.

    Args:
        temperature: Divisor of the cosines, greater than 0.
        symmetric: Also find the anchors from the positives.
    """

    targets: ClassVar[tuple[str, ...]] = ("views",)
    is_batch_statistic: ClassVar[bool] = True

    @validated()
    def __init__(self, temperature: Positive, symmetric: bool) -> None:
        super().__init__()
        self.temperature = temperature
        self.symmetric = symmetric

    def check(self, target: Tensor) -> None:
        """Raise RowError unless `target` is int64 (B, K) with at least two views."""
        check_views(target)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the samples: shape (), float32 (float64 for float64 vectors).

        Args:
            output: Vectors (B * K, D), with the K views of a sample next to each other.
            target: The number of each sample (B, K).

        Raises:
            ValueError: The output does not have one vector for each view.
        """
        if output.ndim != 2 or target.ndim != 2 or len(output) != target.numel():
            shapes = f"the output is {tuple(output.shape)}, the target {tuple(target.shape)}"
            raise ValueError(f"the output must have one row for each of the target's views: {shapes}")
        samples, views = target.shape
        vectors = _normalize(promote_to_float32(output)).view(samples, views, output.shape[1])
        anchors = vectors[:, 0]
        # All positives come first, so that the positive of sample i is candidate i.
        candidates = vectors[:, 1:].transpose(0, 1).flatten(0, 1)
        scores = anchors @ candidates.T / self.temperature
        correct = torch.arange(samples, device=output.device)
        numbers = target[:, 0]
        repeated = (numbers[:, None] == numbers).fill_diagonal_(False)
        scores = scores.masked_fill(repeated.repeat(1, views - 1), -math.inf)
        loss = F.cross_entropy(scores, correct, reduction="sum")
        if self.symmetric:
            loss = (loss + F.cross_entropy(scores[:, :samples].T, correct, reduction="sum")) / 2
        return loss

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the samples of `target` (B, K): int64, shape ()."""
        return count_tensor(target, len(target))


def _normalize(vectors: Tensor) -> Tensor:
    """Scale vectors (N, D) to length 1. A zero vector stays zero, with the gradient of a division by 1."""
    # Dividing by the largest entry first keeps the squares from overflowing or vanishing.
    largest = vectors.detach().abs().amax(dim=1, keepdim=True)
    vectors = vectors / largest.masked_fill(largest == 0, 1)
    squared = vectors.square().sum(dim=1, keepdim=True)
    return vectors / squared.masked_fill(squared == 0, 1).sqrt()
