"""Metrics of several labels at once, over logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MultilabelExactMatch, MultilabelF1Score
from torchmetrics.utilities import dim_zero_cat
from torchmetrics.wrappers.abstract import WrapperMetric

_LABELS_AT_ONCE = 256


def multilabel_metrics(num_labels: int, threshold: float) -> MetricCollection:
    """F1 over all answers and as the mean over the labels, mean average precision, and the share of samples all right.

    Args:
        num_labels: C, at least 2.
        threshold: A label is predicted where its probability is above it.
    """
    micro, macro = (MultilabelF1Score(num_labels, average=how, validate_args=False) for how in ("micro", "macro"))
    exact = MultilabelExactMatch(num_labels, validate_args=False)
    return MetricCollection(
        {
            "micro_f1": OfDecisions(micro, threshold),
            "macro_f1": OfDecisions(macro, threshold),
            "mean_average_precision": MeanAveragePrecision(),
            "exact_match": OfDecisions(exact, threshold),
        }
    )


def decisions(logits: Tensor, threshold: float) -> Tensor:
    """Whether each label is predicted, boolean like `logits`."""
    return logits.float().sigmoid() > threshold


class OfDecisions(WrapperMetric):
    """A metric of 0 and 1, given logits.

    torchmetrics takes a batch whose logits all happen to lie in [0, 1] for probabilities, so it gets decisions alone.
    """

    higher_is_better = True

    def __init__(self, metric: Metric, threshold: float) -> None:
        super().__init__()
        self.metric = metric
        self.threshold = threshold

    def update(self, output: Tensor, target: Tensor) -> None:
        """Takes logits and labels of 0 and 1, both (B, C)."""
        self.metric.update(decisions(output, self.threshold).int(), target.int())

    def compute(self) -> Tensor:
        value: Tensor = self.metric.compute()
        return value

    def reset(self) -> None:
        super().reset()
        self.metric.reset()


class MeanAveragePrecision(Metric):
    """The mean of the labels' average precisions, exact; it keeps all logits of a split.

    The average precision of a label is sum_n (R_n - R_(n-1)) P_n over the distinct scores as thresholds, from the
    highest: P and R are precision and recall of what lies at or above the n-th. A label without a positive has none and
    is left out of the mean; NaN where that leaves nothing.

    Source: scikit-learn's `average_precision_score`; Zhu 2004, "Recall, precision and average precision".
    """

    higher_is_better = True
    full_state_update = False
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("outputs", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Takes scores and labels of 0 and 1, both (B, C)."""
        self.outputs.append(output.detach())
        self.targets.append(target.bool())

    def compute(self) -> Tensor:
        """Shape (), float64."""
        output, target = (dim_zero_cat(rows).cpu() for rows in (self.outputs, self.targets))
        parts = [slice(start, start + _LABELS_AT_ONCE) for start in range(0, output.shape[1], _LABELS_AT_ONCE)]
        return torch.cat([average_precisions(output[:, part], target[:, part]) for part in parts]).nanmean()


def average_precisions(scores: Tensor, target: Tensor) -> Tensor:
    """The average precision of each label, (N, C) to (C,), float64; NaN for a label without a positive."""
    order = scores.argsort(dim=0, descending=True)
    scores, positive = scores.gather(0, order), target.gather(0, order)
    places = torch.arange(len(scores))[:, None].expand_as(scores)
    # Equal scores are one threshold: each takes precision and recall at the last of them.
    is_last = torch.ones_like(positive)
    is_last[:-1] = scores[:-1] != scores[1:]
    last = places.masked_fill(~is_last, len(scores)).flip(0).cummin(0).values.flip(0)
    precision = positive.cumsum(0).gather(0, last).double() / (last + 1)
    return (precision * positive).sum(0) / positive.sum(0)
