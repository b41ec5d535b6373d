"""Cross entropy over classes."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor, nn

from trainer.constraints import BelowOne, validated
from trainer.errors import raise_if_any
from trainer.loss.classification import (
    IGNORE_INDEX_RULES,
    WEIGHT_RULES,
    Factors,
    check_class_targets,
    compute_class_terms,
    count_class_targets,
    find_weight_problems,
    infer_num_classes,
    make_class_weights,
)


class CrossEntropy(nn.Module):
    """Cross entropy of logits (..., C) with classes (...,) or shares (B, C): torch's with `reduction="sum"`.

    `trainer.loss.classification` defines how weights, label smoothing and ignored targets combine. `num_targets`, the
    divisor of a step, counts targets, not their weights.

    Args:
        weight: One factor per class, in their order or by name, at least 0; "auto" or "effective_number" for factors
            with a mean of 1 from the training counts; None for no weights.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        ignore_index: Target that is ignored in the sum and in the count.
        class_counts: Training targets of each class, if the task counts them.
        num_outputs: Number of classes C, if it is known.
        class_names: Names of the classes, if the task has them.

    Raises:
        ConfigError: `weight` does not fit the classes.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "shares")
    sums_over_rows: ClassVar[bool] = True
    weight: Tensor | None

    @validated(*WEIGHT_RULES, *IGNORE_INDEX_RULES)
    def __init__(
        self,
        weight: Factors | Literal["auto", "effective_number"] | None,
        label_smoothing: BelowOne,
        ignore_index: int,
        class_counts: list[int] | None = None,
        num_outputs: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = infer_num_classes(class_counts, num_outputs)
        raise_if_any(*find_weight_problems("weight", weight, class_counts, self.num_classes, class_names))
        self.register_buffer("weight", make_class_weights(weight, class_counts, class_names), persistent=False)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the targets: shape (), float32 (float64 for float64 logits)."""
        return self.row_terms(output, target).sum()

    def row_terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the terms of the sum: (B,), or (B, C) for shares; leading axes are flattened."""
        terms = compute_class_terms(output, target, self.weight, self.label_smoothing, self.ignore_index)
        return terms.weighted(terms.cross_entropy)

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the targets that are not ignored: int64, shape ()."""
        return count_class_targets(target, self.ignore_index)

    def check(self, target: Tensor) -> None:
        """Raise RowError unless the targets are classes or shares."""
        check_class_targets(target, self.num_classes, self.ignore_index)
