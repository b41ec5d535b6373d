"""Cross entropy over classes."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor, nn

from trainer.loss.classification import (
    at_least_float32,
    check_label_smoothing,
    class_weights,
    count_targets,
    cross_entropy_sum,
)


class CrossEntropy(nn.Module):
    """Cross entropy of logits (B, C) with integer targets (B,): torch's with `reduction="sum"`.

    The divisor of a step, `num_targets`, counts targets. It is not the sum of their class weights, by which torch's
    weighted mean divides: so a row weighs the same whatever else is in its batch. "auto" weights have mean 1 over the
    training targets, so both divisors agree on average.

    Args:
        weight: One factor a class; "auto" for n / (K * count); None for none. See `class_weights`.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        ignore_index: The target that is left out of the sum and of the count.
        class_counts: Training targets of each class, where the task counts them.

    Raises:
        ConfigError: A value is out of range, or `weight` does not fit the classes.
    """

    weight: Tensor | None

    def __init__(
        self,
        weight: list[float] | Literal["auto"] | None,
        label_smoothing: float,
        ignore_index: int,
        class_counts: list[int] | None = None,
    ) -> None:
        super().__init__()
        check_label_smoothing(label_smoothing)
        self.register_buffer(
            "weight", class_weights("weight", weight, class_counts, largest=math.inf), persistent=False
        )
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the targets: shape (), float32 (float64 for float64 logits)."""
        return cross_entropy_sum(at_least_float32(output), target, self.weight, self.label_smoothing, self.ignore_index)

    def num_targets(self, target: Tensor) -> Tensor:
        """How many targets (B,) are not ignored: int64, shape ()."""
        return count_targets(target, self.ignore_index)
