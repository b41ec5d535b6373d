"""Poly-1 loss over classes."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainer.errors import format_error, raise_if_any
from trainer.loss.classification import (
    check_class_targets,
    class_rows,
    class_weights,
    count_rows,
    num_classes_of,
    weight_faults,
)
from trainer.ranges import below_one


class Poly(nn.Module):
    """Cross entropy with another leading term: H + epsilon * w[y] * (1 - t), logits (..., C), classes (...,) or shares.

    t is the probability that the model gives to the target: p[y], or the sum of the smoothed target times p. The cross
    entropy's expansion in powers of 1 - p[y] starts with the coefficient 1; this makes it 1 + epsilon (Leng et al.
    2022, https://arxiv.org/abs/2204.12511, Poly-1). H, the weights w and the rest are those of
    `trainer.loss.classification`; epsilon 0 is `CrossEntropy` to the bit.

    Args:
        epsilon: What is added to the first coefficient, at least -1: below, a sure and right row would be pushed away.
        weight: One factor a class; "auto" or "effective_number" for factors of mean 1 from the training counts; None
            for none.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        ignore_index: The target that is left out of the sum and of the count.
        class_counts: Training targets of each class, where the task counts them.
        num_outputs: C, where it is known.

    Raises:
        ConfigError: A value is out of range, or `weight` does not fit the classes.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "shares")
    weight: Tensor | None

    def __init__(
        self,
        epsilon: float,
        weight: list[float] | Literal["auto", "effective_number"] | None,
        label_smoothing: float,
        ignore_index: int,
        class_counts: list[int] | None = None,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes_of(class_counts, num_outputs)
        in_range = -1 <= epsilon < math.inf
        raise_if_any(
            *([] if in_range else [format_error("epsilon", "must be finite and at least -1", value=epsilon)]),
            *weight_faults("weight", weight, class_counts, self.num_classes, largest=math.inf),
            below_one("label_smoothing", label_smoothing),
        )
        self.register_buffer("weight", class_weights(weight, class_counts), persistent=False)
        self.epsilon = epsilon
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the targets: shape (), float32 (float64 for float64 logits)."""
        rows = class_rows(output, target, self.weight, self.label_smoothing, self.ignore_index)
        if self.epsilon == 0:
            return rows.total(rows.cross_entropy)
        # 1 - t in terms of 1 - p[y], of which expm1 keeps the digits where p[y] is near 1.
        miss = (1 - self.label_smoothing) * -torch.expm1(-rows.surprise)
        miss = miss + self.label_smoothing * (1 - 1 / output.shape[-1])
        return rows.total(rows.cross_entropy + self.epsilon * rows.weight * miss)

    def num_targets(self, target: Tensor) -> Tensor:
        """How many targets are not ignored: int64, shape ()."""
        return count_rows(target, self.ignore_index)

    def check(self, target: Tensor) -> None:
        """Raises RowError unless the targets are classes or shares."""
        check_class_targets(target, self.num_classes, self.ignore_index)
