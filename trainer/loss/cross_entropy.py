"""Cross entropy over classes."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from torch import Tensor, nn

from trainer.errors import raise_if_any
from trainer.loss.classification import (
    check_class_targets,
    class_rows,
    class_weights,
    count_rows,
    num_classes_of,
    weight_faults,
)
from trainer.ranges import below_one


class CrossEntropy(nn.Module):
    """Cross entropy of logits (..., C) with classes (...,) or shares (B, C): torch's with `reduction="sum"`.

    Weights, label smoothing and ignored targets combine as `trainer.loss.classification` says; the divisor of a step,
    `num_targets`, counts targets and not their weights.

    Args:
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
        weight: list[float] | Literal["auto", "effective_number"] | None,
        label_smoothing: float,
        ignore_index: int,
        class_counts: list[int] | None = None,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes_of(class_counts, num_outputs)
        raise_if_any(
            *weight_faults("weight", weight, class_counts, self.num_classes, largest=math.inf),
            below_one("label_smoothing", label_smoothing),
        )
        self.register_buffer("weight", class_weights(weight, class_counts), persistent=False)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the targets: shape (), float32 (float64 for float64 logits)."""
        rows = class_rows(output, target, self.weight, self.label_smoothing, self.ignore_index)
        return rows.total(rows.cross_entropy)

    def num_targets(self, target: Tensor) -> Tensor:
        """How many targets are not ignored: int64, shape ()."""
        return count_rows(target, self.ignore_index)

    def check(self, target: Tensor) -> None:
        """Raises RowError unless the targets are classes or shares."""
        check_class_targets(target, self.num_classes, self.ignore_index)
