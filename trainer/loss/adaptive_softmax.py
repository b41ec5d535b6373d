"""Adaptive softmax: rare classes share narrow clusters."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.constraints import AtLeastOne, Count, Rule, validated
from trainer.errors import ConfigError, format_error
from trainer.loss.classification import IGNORE_INDEX_RULES
from trainer.loss.softmax_layer import SoftmaxLayerLoss, require_class_counts


class AdaptiveSoftmax(SoftmaxLayerLoss):
    """Cross entropy of features (..., D) with classes (...,): torch's `AdaptiveLogSoftmaxWithLoss`, summed.

    Grave et al. 2017, https://arxiv.org/abs/1609.04309. The head scores the most frequent classes and each cluster of
    rarer classes; the classes of cluster i are scored only for targets in it, from D / div_value ** i features. Torch
    expects the classes in descending order of frequency: they are sorted by their training counts (ties: the lower
    number first), and the scores are sorted back.

    Args:
        in_features: Features per target D that the model returns, at least 1.
        cutoffs: Ends of the head and of each cluster but the last in the sorted classes, ascending, each in
            1 ... C - 1; None for 5% and 25% of the classes.
        div_value: Ratio of the widths of consecutive clusters' projections, at least 1.
        head_bias: Add a bias to the scores of the head.
        ignore_index: Target that is ignored in the sum and in the count.
        num_outputs: Number of classes C, at least 2.
        class_counts: Training targets of each class, if the task counts them; else lower classes count as more
            frequent.

    Raises:
        ConfigError: The task does not know its classes.
    """

    rank: Tensor

    @validated(
        Rule(
            "cutoffs is None or (len(cutoffs) > 0 and cutoffs == sorted(set(cutoffs)))",
            key="cutoffs",
            problem="must be ascending numbers of classes",
            remedy="Use null for 5% and 25% of the classes",
        ),
        Rule(
            "in_features >= div_value ** (1 if cutoffs is None else len(cutoffs))",
            key="div_value",
            problem="leaves no feature of in_features={in_features} for the last cluster",
            remedy="Use a smaller value or fewer cutoffs",
        ),
        *IGNORE_INDEX_RULES,
    )
    def __init__(
        self,
        in_features: Count,
        cutoffs: list[Count] | None,
        div_value: AtLeastOne,
        head_bias: bool,
        ignore_index: int,
        num_outputs: int | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        counts = require_class_counts(num_outputs, class_counts)
        super().__init__(in_features, ignore_index, len(counts))
        cutoffs = _default_cutoffs(len(counts)) if cutoffs is None else cutoffs
        _check(in_features, cutoffs, div_value, len(counts))
        self.softmax = nn.AdaptiveLogSoftmaxWithLoss(in_features, len(counts), cutoffs, div_value, head_bias)
        by_count = torch.tensor(counts).argsort(descending=True, stable=True)
        self.register_buffer("rank", by_count.argsort(), persistent=False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the targets: shape (), in the parameters' type.

        This waits for the device: the host needs the number of targets in each cluster.

        Raises:
            ValueError: The output does not have one row of D features for each target.
        """
        features, target = self.flatten_features(output, target)
        kept = target != self.ignore_index
        features = features[kept].to(self.softmax.head.weight.dtype)
        log_p: Tensor = self.softmax(features, self.rank[target[kept]]).output
        # Empty slices: a cluster without targets gets a gradient of zeros, so its weights decay like all others.
        untouched = torch.cat([parameter[:0].flatten() for parameter in self.softmax.tail.parameters()])
        return (-log_p).sum() + untouched.sum()

    def scores(self, output: Tensor) -> Tensor:
        """Return the log-probabilities of all classes: features (..., D) to (..., C), in the parameters' type."""
        features = output.to(self.softmax.head.weight.dtype)
        log_p: Tensor = self.softmax.log_prob(features.reshape(-1, self.in_features))
        return log_p[:, self.rank].view(*output.shape[:-1], self.num_outputs)


def _default_cutoffs(num_classes: int) -> list[int]:
    return sorted({max(1, num_classes // 20), max(1, num_classes // 4)})


def _check(in_features: int, cutoffs: list[int], div_value: float, num_classes: int) -> None:
    """Raise ConfigError if the cutoffs do not fit the classes, or the default cutoffs do not fit the features."""
    if cutoffs[-1] >= num_classes:
        problem = f"must be numbers of classes between 1 and {num_classes - 1}"
        raise ConfigError(
            format_error("cutoffs", problem, "Use loss.cutoffs=null for 5% and 25% of the classes", value=cutoffs)
        )
    if in_features < div_value ** len(cutoffs):
        problem = f"leaves no feature of in_features={in_features} for the last of {len(cutoffs)} clusters"
        raise ConfigError(format_error("div_value", problem, "Use a smaller value or fewer cutoffs", value=div_value))
