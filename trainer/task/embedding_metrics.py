"""Metrics of embeddings: retrieval of texts with the same meaning, and the geometry of the vectors on the sphere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat

from trainer.task.regression_metrics import Score, pearson, spearman

_MAX_COSINES = 2**22
"""Cosines to hold at a time."""


class ViewStatistic(Metric):
    """A statistic of the K unit vectors of each of the N samples of a split.

    It keeps them until the end, 4 * K * D bytes per sample; metrics in one collection share them. A zero vector stays
    zero, so its cosine with any other vector is 0.

    Args:
        statistic: Maps vectors (N, K, D) to a number, shape ().
    """

    full_state_update = False
    vectors: list[Tensor]

    def __init__(self, statistic: Callable[[Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.statistic = statistic
        self.add_state("vectors", default=[], dist_reduce_fx="cat")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add vectors (B * K, D), sample by sample, and any target (B, K)."""
        self.vectors.append(F.normalize(output.detach().float(), dim=-1).view(*target.shape, output.shape[-1]))

    def compute(self) -> Tensor:
        return self.statistic(dim_zero_cat(self.vectors))


class ViewScore(ViewStatistic):
    """A statistic that is better if it is higher."""

    higher_is_better = True


class ViewError(ViewStatistic):
    """A statistic that is better if it is lower."""

    higher_is_better = False


class CosineScore(Score):
    """A statistic, better if higher, of the cosine of each pair and its similarity."""

    def __init__(self, statistic: Callable[[Tensor, Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(statistic, [1.0], **kwargs)

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add vectors (2 * B, D), pair by pair, and similarities (B,)."""
        first, second = F.normalize(output.detach().float(), dim=-1).view(len(target), 2, -1).unbind(dim=1)
        super().update((first * second).sum(dim=1, keepdim=True), target[:, None])


def retrieval_metrics(*, negatives: bool) -> MetricCollection:
    """Return the metrics of anchors, positives and, with `negatives`, hard negatives: output (B * K, D)."""
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
    """Return the metric of texts without positives: output (B * K, D), target (B, K)."""
    return MetricCollection({"uniformity": ViewError(uniformity)})


def score_metrics() -> MetricCollection:
    """Return the correlations of cosines with similarities: output (2 * B, D), target (B,)."""
    return MetricCollection({"spearman": CosineScore(spearman), "pearson": CosineScore(pearson)})


def positive_ranks(vectors: Tensor) -> Tensor:
    """Return the rank of each anchor's positive among all positives by cosine: (N, K, D) to int64 (N,), from 1.

    Positives that are as near as the anchor's own, and positives without a comparable cosine (NaN), count as nearer:
    identical vectors retrieve nothing.
    """
    anchors, positives = vectors[:, 0], vectors[:, 1]
    ranks = []
    for start, scores in _cosines(anchors, positives):
        own = scores.diagonal(offset=start)[:, None]
        ranks.append((~(scores < own)).sum(dim=1))
    return torch.cat(ranks)


def recall(vectors: Tensor, at: int) -> Tensor:
    """Return the fraction of anchors whose positive is among the `at` nearest positives of the split."""
    return (positive_ranks(vectors) <= at).float().mean()


def mean_reciprocal_rank(vectors: Tensor) -> Tensor:
    """Return the mean of 1 / rank of each anchor's positive among the positives of the split."""
    return positive_ranks(vectors).float().reciprocal().mean()


def triplet_accuracy(vectors: Tensor) -> Tensor:
    """Return the fraction of anchors whose positive is nearer than each of their hard negatives."""
    return nearer_than_negatives(vectors).float().mean()


def nearer_than_negatives(vectors: Tensor) -> Tensor:
    """Return if each anchor's positive is nearer than each of its hard negatives: (N, K, D) to bool (N,)."""
    cosines = (vectors[:, :1] * vectors[:, 1:]).sum(dim=2)
    return (cosines[:, :1] > cosines[:, 1:]).all(dim=1)


def alignment(vectors: Tensor) -> Tensor:
    """Return mean(|a - p|^2) over the pairs of an anchor and its positive.

    Source: Wang and Isola 2020, https://arxiv.org/abs/2005.10242, with alpha = 2.
    """
    return (vectors[:, 0] - vectors[:, 1]).square().sum(dim=1).mean()


def uniformity(vectors: Tensor) -> Tensor:
    """Return log(mean(exp(-2 |a - b|^2))) over all pairs of anchors, -8 to 0: lower if they cover more of the sphere.

    NaN for a single sample, which has no pair.

    Source: Wang and Isola 2020, https://arxiv.org/abs/2005.10242, with t = 2.
    """
    anchors = vectors[:, 0]
    total = sum(float(close.triu(start + 1).sum()) for start, close in _closeness(anchors))
    pairs = len(anchors) * (len(anchors) - 1) / 2
    return torch.tensor(total / pairs if pairs else torch.nan).log()


def mean_closeness(vectors: Tensor) -> Tensor:
    """Return the mean of exp(-2 |a - b|^2) over all other vectors, for each of at least two (N, D): float64 (N,)."""
    means = []
    for start, close in _closeness(vectors):
        own = close.double()
        means.append((own.sum(dim=1) - own.diagonal(offset=start)) / (len(vectors) - 1))
    return torch.cat(means)


def _closeness(vectors: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield exp(-2 |a - b|^2) of some vectors with all of them (N, D), each with its first row."""
    squares = vectors.square().sum(dim=1)
    for start, scores in _cosines(vectors, vectors):
        distances = squares[start : start + len(scores), None] + squares - 2 * scores
        yield start, distances.clamp(min=0).mul(-2).exp()


def _cosines(first: Tensor, second: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the products of some rows of `first` (N, D) with all of `second` (M, D), each with its first row."""
    rows = max(1, _MAX_COSINES // len(second))
    for start in range(0, len(first), rows):
        yield start, first[start : start + rows] @ second.T
