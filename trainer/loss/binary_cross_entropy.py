"""Binary cross entropy over several labels."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.errors import format_error, raise_if_any
from trainer.loss.classification import (
    count_targets,
    num_classes_of,
)
from trainer.loss.multilabel import ignore_index_faults, label_entries, positive_weights, smoothed
from trainer.ranges import below_one
from trainer.targets import check_multi_hot


class BinaryCrossEntropy(nn.Module):
    """Binary cross entropy of logits (B, C) with labels (B, C) of 0 and 1: torch's with `reduction="sum"`.

    The entries' cross entropy of `trainer.loss.multilabel` with the weights `pos_weight` for positives and 1 for
    negatives, as in `torch.nn.BCEWithLogitsLoss`. The divisor of a step, `num_targets`, counts entries.

    Args:
        pos_weight: One factor a label; "auto" for negatives / positives of each label in the training split; None for
            none.
        label_smoothing: Share of the target spread evenly over yes and no, in [0, 1).
        ignore_index: The entry that is left out of the sum and of the count.
        class_counts: Training positives of each label, where the task counts them.
        num_outputs: C, where it is known.
        num_train: Training samples, where they are known.

    Raises:
        ConfigError: A value is out of range, or `pos_weight` does not fit the labels.
    """

    targets: ClassVar[tuple[str, ...]] = ("multi_hot",)
    pos_weight: Tensor | None

    def __init__(
        self,
        pos_weight: list[float] | Literal["auto"] | None,
        label_smoothing: float,
        ignore_index: int,
        class_counts: list[int] | None = None,
        num_outputs: int | None = None,
        num_train: int | None = None,
    ) -> None:
        super().__init__()
        self.num_labels = num_classes_of(class_counts, num_outputs)
        counted = class_counts is not None and num_train is not None
        raise_if_any(
            *_pos_weight_faults(pos_weight, self.num_labels, counted),
            below_one("label_smoothing", label_smoothing),
            *ignore_index_faults(ignore_index),
        )
        if pos_weight == "auto" and class_counts is not None and num_train is not None:
            pos_weight = positive_weights(class_counts, num_train)
        weights = None if pos_weight is None else torch.tensor(pos_weight, dtype=torch.float32)
        self.register_buffer("pos_weight", weights, persistent=False)
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the entries: shape (), float32 (float64 for float64 logits)."""
        logits, labels, ignored = label_entries(output, target, self.ignore_index)
        weight = self.pos_weight
        if weight is not None and weight.shape != logits.shape[1:]:
            raise ValueError(f"{len(weight)} values of pos_weight for an output of {logits.shape[1]} labels")
        entries = F.binary_cross_entropy_with_logits(
            logits,
            smoothed(labels, self.label_smoothing),
            pos_weight=None if weight is None else weight.to(logits.dtype),
            reduction="none",
        )
        return entries.masked_fill(ignored, 0).sum()

    def num_targets(self, target: Tensor) -> Tensor:
        """How many entries of (B, C) are not ignored: int64, shape ()."""
        return count_targets(target, self.ignore_index)

    def check(self, target: Tensor) -> None:
        """Raises RowError unless the targets are labels."""
        check_multi_hot(target, self.num_labels, self.ignore_index)


def _pos_weight_faults(weights: list[float] | str | None, num_labels: int | None, counted: bool) -> list[str]:
    if weights is None:
        return []
    if isinstance(weights, str):
        if weights != "auto":
            return [format_error("pos_weight", "must be one value for each label, auto or null", value=weights)]
        problem = "needs a task whose labels and training samples are counted"
        return [] if counted else [format_error("pos_weight", problem, "Use pos_weight=null", value=weights)]
    faults = []
    if num_labels is not None and len(weights) != num_labels:
        faults.append(format_error("pos_weight", f"needs one value for each of the {num_labels} labels", value=weights))
    if not all(0 <= weight < math.inf for weight in weights):
        faults.append(format_error("pos_weight", "every value must be finite and not negative", value=weights))
    return faults
