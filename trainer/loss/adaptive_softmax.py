"""Adaptive softmax: rare classes share narrow clusters."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.errors import format_error, raise_if_any
from trainer.loss.classification import count_targets
from trainer.loss.features import counts_of_classes, feature_rows
from trainer.targets import check_classes


class AdaptiveSoftmax(nn.Module):
    """Cross entropy of features (..., D) with classes (...,): torch's `AdaptiveLogSoftmaxWithLoss`, summed.

    Grave et al. 2017, https://arxiv.org/abs/1609.04309. The most frequent classes are scored with one score for each
    cluster of rarer ones, and a cluster's classes only where the target is one of them, from D / div_value ** i
    features in the i-th. Torch wants the classes in falling order of frequency: they are put into it by their training
    counts (of equal ones, the lower number first), and the scores back.

    Args:
        in_features: Features that the model gives for each target, D; at least 1.
        cutoffs: Numbers of most frequent classes at which the first part and each cluster but the last end, rising,
            each in 1 ... C - 1; None for 5 % and 25 % of the classes.
        div_value: How much narrower each cluster's projection is than the one before; at least 1.
        head_bias: Whether the scores of the first part and of the clusters have a bias.
        ignore_index: The target that is left out of the sum and of the count.
        num_outputs: The classes, C; at least 2.
        class_counts: Training targets of each class, where the task counts them; else the lower numbers are taken as
            the more frequent.

    Raises:
        ConfigError: A value is out of range, or the task does not know its classes.
    """

    targets: ClassVar[tuple[str, ...]] = ("class",)

    rank: Tensor

    def __init__(
        self,
        in_features: int,
        cutoffs: list[int] | None,
        div_value: float,
        head_bias: bool,
        ignore_index: int,
        num_outputs: int | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        super().__init__()
        counts = counts_of_classes(num_outputs, class_counts)
        cutoffs = _cutoffs(len(counts)) if cutoffs is None else cutoffs
        _check(in_features, cutoffs, div_value, len(counts))
        self.in_features = in_features
        self.ignore_index = ignore_index
        self.num_outputs = len(counts)
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(in_features, len(counts), cutoffs, div_value, head_bias)
        by_count = torch.tensor(counts).argsort(descending=True, stable=True)
        self.register_buffer("rank", by_count.argsort(), persistent=False)

    def check(self, target: Tensor) -> None:
        """Raises RowError unless `target` holds classes or `ignore_index`."""
        check_classes(target, self.num_outputs, self.ignore_index)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the targets: shape (), in the parameters' type.

        It waits for the device: how many targets each cluster has is needed on the host.

        Raises:
            ValueError: There is not one row of D features for each target.
        """
        features, target = feature_rows(output, target, self.in_features)
        kept = target != self.ignore_index
        features = features[kept].to(self.softmax.head.weight.dtype)
        log_p: Tensor = self.softmax(features, self.rank[target[kept]]).output
        # No entry of each: a cluster without targets has a gradient of zeros, so that its weights decay like others.
        untouched = torch.cat([parameter[:0].flatten() for parameter in self.softmax.tail.parameters()])
        return (-log_p).sum() + untouched.sum()

    def num_targets(self, target: Tensor) -> Tensor:
        """How many targets (...,) are not ignored: int64, shape ()."""
        return count_targets(target, self.ignore_index)

    def scores(self, output: Tensor) -> Tensor:
        """Log-probabilities of all classes: features (..., D) to (..., C), in the parameters' type."""
        features = output.to(self.softmax.head.weight.dtype)
        log_p: Tensor = self.softmax.log_prob(features.reshape(-1, self.in_features))
        return log_p[:, self.rank].view(*output.shape[:-1], self.num_outputs)


def _cutoffs(num_classes: int) -> list[int]:
    return sorted({max(1, num_classes // 20), max(1, num_classes // 4)})


def _check(in_features: int, cutoffs: list[int], div_value: float, num_classes: int) -> None:
    messages = []
    if in_features < 1:
        messages.append(format_error("in_features", "must be at least 1", value=in_features))
    if not cutoffs or cutoffs != sorted(set(cutoffs)) or not 1 <= cutoffs[0] <= cutoffs[-1] < num_classes:
        problem = f"must be rising numbers of classes, each between 1 and {num_classes - 1}"
        messages.append(
            format_error("cutoffs", problem, "Use cutoffs=null for 5 % and 25 % of the classes", value=cutoffs)
        )
    elif not div_value >= 1:
        messages.append(format_error("div_value", "must be at least 1", value=div_value))
    elif in_features >= 1 and in_features < div_value ** len(cutoffs):
        problem = f"leaves the last of {len(cutoffs)} clusters no feature of {in_features}"
        messages.append(format_error("div_value", problem, "Use a smaller one, or fewer cutoffs", value=div_value))
    raise_if_any(*messages)
