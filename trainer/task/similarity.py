"""Metrics of embeddings: how well texts of one meaning are found again, and how the vectors lie on the sphere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from trainer.task.regression_metric import Score, pearson, spearman

_ELEMENTS = 2**22
"""Cosines that are held at once."""


class ViewStatistic(Metric):
    """A statistic of the K vectors, of length 1, of each of the N samples of a split.

    It keeps them until the end, 4 * K * D bytes a sample; metrics in one collection share them. A vector of zeros stays
    one, so its cosine with any other is 0.

    Args:
        statistic: Vectors (N, K, D) to a number, shape ().
    """

    full_state_update = False
    vectors: list[Tensor]

    def __init__(self, statistic: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.statistic = statistic
        self.add_state("vectors", default=[], dist_reduce_fx="cat")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Takes vectors (B * K, D), sample by sample, and any target (B, K)."""
        self.vectors.append(F.normalize(output.detach().float(), dim=-1).view(*target.shape, output.shape[-1]))

    def compute(self) -> Tensor:
        return self.statistic(dim_zero_cat(self.vectors))


class ViewScore(ViewStatistic):
    """A statistic of which more is better."""

    higher_is_better = True


class ViewError(ViewStatistic):
    """A statistic of which less is better."""

    higher_is_better = False


class CosineScore(Score):
    """A statistic, of which more is better, of the cosine of each pair and its similarity."""

    def __init__(self, statistic: Callable[[Tensor, Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(statistic, [1.0], **kwargs)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Takes vectors (2 * B, D), pair by pair, and similarities (B,)."""
        first, second = F.normalize(output.detach().float(), dim=-1).view(len(target), 2, -1).unbind(dim=1)
        super().update((first * second).sum(dim=1, keepdim=True), target[:, None])


def retrieval_metrics(*, negatives: bool) -> MetricCollection:
    """The metrics of anchors, positives and, with `negatives`, hard negatives: output (B * K, D), target (B, K)."""
    metrics: dict[str, Metric | MetricCollection] = {
        "recall_at_1": ViewScore(partial(recall, at=1)),
        "recall_at_5": ViewScore(partial(recall, at=5)),
        "mrr": ViewScore(mean_reciprocal_rank),
        "alignment": ViewError(alignment),
        "uniformity": ViewError(uniformity),
    }
    if negatives:
        metrics["triplet_accuracy"] = ViewScore(triplet_accuracy)
    return MetricCollection(metrics)


def uniformity_metric() -> MetricCollection:
    """The metric of texts alone: output (B * K, D), target (B, K)."""
    return MetricCollection({"uniformity": ViewError(uniformity)})


def score_metrics() -> MetricCollection:
    """The correlations of cosines with similarities: output (2 * B, D), target (B,)."""
    return MetricCollection({"spearman": CosineScore(spearman), "pearson": CosineScore(pearson)})


def ranks(vectors: Tensor) -> Tensor:
    """The rank of each anchor's positive among all positives, by cosine: (N, K, D) to int64 (N,), from 1.

    Positives that are as near as its own, and those without a comparable cosine (NaN), count as nearer: vectors that
    are all the same find nothing.
    """
    anchors, positives = vectors[:, 0], vectors[:, 1]
    found = []
    for start, scores in _cosines(anchors, positives):
        own = scores.diagonal(offset=start)[:, None]
        found.append((~(scores < own)).sum(dim=1))
    return torch.cat(found)


def recall(vectors: Tensor, at: int) -> Tensor:
    """The share of anchors whose positive is among the `at` nearest positives of the split."""
    return (ranks(vectors) <= at).float().mean()


def mean_reciprocal_rank(vectors: Tensor) -> Tensor:
    """The mean of 1 / rank of each anchor's positive among the positives of the split."""
    return ranks(vectors).float().reciprocal().mean()


def triplet_accuracy(vectors: Tensor) -> Tensor:
    """The share of anchors whose positive is nearer than each of their hard negatives."""
    cosines = (vectors[:, :1] * vectors[:, 1:]).sum(dim=2)
    return (cosines[:, :1] > cosines[:, 1:]).all(dim=1).float().mean()


def alignment(vectors: Tensor) -> Tensor:
    """mean(|a - p|^2) over the pairs of an anchor and its positive: how near together texts of one meaning are.

    Source: Wang and Isola 2020, https://arxiv.org/abs/2005.10242, with alpha = 2.
    """
    return (vectors[:, 0] - vectors[:, 1]).square().sum(dim=1).mean()


def uniformity(vectors: Tensor) -> Tensor:
    """log(mean(exp(-2 |a - b|^2))) over all pairs of anchors: how much of the sphere they leave empty, -8 to 0.

    NaN for a single sample, which has no pair.

    Source: Wang and Isola 2020, https://arxiv.org/abs/2005.10242, with t = 2.
    """
    anchors = vectors[:, 0]
    squares = anchors.square().sum(dim=1)
    total = 0.0
    for start, scores in _cosines(anchors, anchors):
        distances = squares[start : start + len(scores), None] + squares - 2 * scores
        total += float(distances.clamp(min=0).mul(-2).exp().triu(start + 1).sum())
    pairs = len(anchors) * (len(anchors) - 1) / 2
    return torch.tensor(total / pairs if pairs else torch.nan).log()


def _cosines(first: Tensor, second: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The products of rows of `first` (N, D) with all of `second` (M, D), some rows at a time, with the first one's."""
    rows = max(1, _ELEMENTS // len(second))
    for start in range(0, len(first), rows):
        yield start, first[start : start + rows] @ second.T
