"""InfoNCE: a contrast among the samples of a batch."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.errors import raise_if_any
from trainer.loss.classification import at_least_float32
from trainer.loss.regression import count
from trainer.ranges import positive
from trainer.targets import check_views


class InfoNce(nn.Module):
    """Cross entropy of finding each anchor's positive among the positives and hard negatives of the whole batch.

    Van den Oord et al. 2018, https://arxiv.org/abs/1807.03748, eq. 4, with cosines over a temperature t as scores, as
    in SimCSE (Gao et al. 2021, https://arxiv.org/abs/2104.08821, eqs. 1 and 5). Of the K views of a sample the first
    is its anchor a, the second its positive p, the others are hard negatives. With the candidates c, which are the B
    positives and the B * (K - 2) hard negatives, sample i has

        -log(exp(cos(a_i, p_i) / t) / sum_c exp(cos(a_i, c) / t))

    `symmetric` takes the mean of this and of the other direction: finding the anchor of each positive among the B
    anchors. The cosine with a vector of zeros is 0.

    It is a statistic of the batch: the other samples of a micro-batch are the negatives, so accumulation does not
    merge its micro-batches. The divisor of a step counts samples.

    Args:
        temperature: What the cosines are divided by; above 0.
        symmetric: Whether the positives look for their anchors, too.

    Raises:
        ConfigError: `temperature` is out of range.
    """

    targets: ClassVar[tuple[str, ...]] = ("views",)

    def __init__(self, temperature: float, symmetric: bool) -> None:
        super().__init__()
        raise_if_any(positive("temperature", temperature))
        self.temperature = temperature
        self.symmetric = symmetric

    def check(self, target: Tensor) -> None:
        """Raises RowError unless `target` is int64 (B, K) with at least two views."""
        check_views(target)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the samples: shape (), float32 (float64 for float64 vectors).

        Args:
            output: Vectors (B * K, D), the K views of a sample one after the other.
            target: Any integers (B, K); only the shape counts.

        Raises:
            ValueError: There is not one vector for each view.
        """
        if output.ndim != 2 or target.ndim != 2 or len(output) != target.numel():
            shapes = f"the output is {tuple(output.shape)}, the target {tuple(target.shape)}"
            raise ValueError(f"the output must have one row for each of the target's views: {shapes}")
        samples, views = target.shape
        vectors = _unit(at_least_float32(output)).view(samples, views, output.shape[1])
        anchors = vectors[:, 0]
        # All positives first, so that sample i's is candidate i.
        candidates = vectors[:, 1:].transpose(0, 1).flatten(0, 1)
        scores = anchors @ candidates.T / self.temperature
        own = torch.arange(samples, device=output.device)
        loss = F.cross_entropy(scores, own, reduction="sum")
        if self.symmetric:
            loss = (loss + F.cross_entropy(scores[:, :samples].T, own, reduction="sum")) / 2
        return loss

    def num_targets(self, target: Tensor) -> Tensor:
        """How many samples `target` (B, K) has: int64, shape ()."""
        return count(target, len(target))


def _unit(vectors: Tensor) -> Tensor:
    """Vectors (N, D) of length 1. Where the length is 0 they stay, with the gradient of dividing by 1."""
    # The largest entry is divided out first, so that no square overflows or vanishes.
    largest = vectors.detach().abs().amax(dim=1, keepdim=True)
    vectors = vectors / largest.masked_fill(largest == 0, 1)
    squared = vectors.square().sum(dim=1, keepdim=True)
    return vectors / squared.masked_fill(squared == 0, 1).sqrt()
