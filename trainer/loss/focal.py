"""Focal loss over classes."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.errors import ConfigError, explain
from trainer.loss.classification import (
    at_least_float32,
    check_label_smoothing,
    class_weights,
    count_targets,
    cross_entropy_rows,
    cross_entropy_sum,
)


class Focal(nn.Module):
    """Focal loss of logits (B, C) with integer targets (B,): (1 - p[y]) ** gamma times the row's cross entropy.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, eq. 5, over C classes. The cross entropy is the weighted,
    smoothed one of `CrossEntropy`, so gamma 0 is that loss to the bit; smoothing changes the cross entropy and leaves
    the factor in front of it alone. The divisor of a step counts targets, as there.

    Args:
        gamma: How fast well-classified rows lose weight; at least 0.
        alpha: One factor a class, in [0, 1]; "auto" for n / (K * count), of mean 1; None for none.
            See `class_weights`.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        ignore_index: The target that is left out of the sum and of the count.
        class_counts: Training targets of each class, where the task counts them.

    Raises:
        ConfigError: A value is out of range, or `alpha` does not fit the classes.
    """

    alpha: Tensor | None

    def __init__(
        self,
        gamma: float,
        alpha: list[float] | Literal["auto"] | None,
        label_smoothing: float,
        ignore_index: int,
        class_counts: list[int] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= gamma < math.inf:
            raise ConfigError(explain("gamma", "must be finite and not negative", value=gamma))
        check_label_smoothing(label_smoothing)
        self.register_buffer("alpha", class_weights("alpha", alpha, class_counts, largest=1.0), persistent=False)
        self.gamma = gamma
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the targets: shape (), float32 (float64 for float64 logits)."""
        logits = at_least_float32(output)
        shared = (target, self.alpha, self.label_smoothing, self.ignore_index)
        if self.gamma == 0:
            return cross_entropy_sum(logits, *shared)
        log_p = F.log_softmax(logits, dim=1)
        surprise = F.nll_loss(log_p, target, ignore_index=self.ignore_index, reduction="none")
        # expm1 keeps the digits of 1 - p where p is near 1. The floor keeps the slope of x ** gamma finite at 0 for
        # gamma < 1, where inf * 0 would be NaN.
        miss = (-torch.expm1(-surprise)).clamp_min(torch.finfo(surprise.dtype).tiny)
        return (miss.pow(self.gamma) * cross_entropy_rows(log_p, surprise, *shared)).sum()

    def num_targets(self, target: Tensor) -> Tensor:
        """How many targets (B,) are not ignored: int64, shape ()."""
        return count_targets(target, self.ignore_index)
