"""Binary cross entropy over several labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.constraints import BelowOne, Rule, validated
from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.loss.classification import (
    IGNORE_INDEX_RULES,
    Factors,
    find_weight_problems,
    infer_num_classes,
    order_by_class,
)
from trainer.loss.multilabel import MultilabelLoss, balance_pos_weight, prepare_labels, smooth_labels


class BinaryCrossEntropy(MultilabelLoss):
    """Binary cross entropy of logits (B, C) with labels (B, C) of 0 and 1: torch's with `reduction="sum"`.

    The cross entropy of each entry as in `trainer.loss.multilabel`, with the weights `pos_weight` for positives and 1
    for negatives, as in `torch.nn.BCEWithLogitsLoss`. `num_targets`, the divisor of a step, counts entries.

    Args:
        pos_weight: One factor per label, in their order or by name, at least 0; "auto" for negatives / positives of
            each label in the training split; None for no weights.
        label_smoothing: Share of the target spread evenly over yes and no, in [0, 1).
        ignore_index: Entry that is ignored in the sum and in the count.
        class_counts: Training positives of each label, if the task counts them.
        num_outputs: Number of labels C, if it is known.
        num_train: Number of training samples, if it is known.
        class_names: Names of the labels, if the task has them.

    Raises:
        ConfigError: `pos_weight` does not fit the labels.
    """

    pos_weight: Tensor | None

    @validated(
        Rule(
            "not isinstance(pos_weight, list) or any(pos_weight)",
            key="pos_weight",
            problem="must have a value greater than 0",
        ),
        Rule(
            "not isinstance(pos_weight, dict) or any(pos_weight[name] for name in pos_weight)",
            key="pos_weight",
            problem="must have a value greater than 0",
        ),
        *IGNORE_INDEX_RULES,
    )
    def __init__(
        self,
        pos_weight: Factors | Literal["auto"] | None,
        label_smoothing: BelowOne,
        ignore_index: int,
        class_counts: list[int] | None = None,
        num_outputs: int | None = None,
        num_train: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(ignore_index, infer_num_classes(class_counts, num_outputs))
        if isinstance(pos_weight, Mapping):
            raise_if_any(*find_weight_problems("pos_weight", pos_weight, class_counts, self.num_outputs, class_names))
            pos_weight = list(order_by_class(pos_weight, class_names))
        weights = self._choose_weights(pos_weight, class_counts, num_train)
        buffer = None if weights is None else torch.tensor(weights, dtype=torch.float32)
        self.register_buffer("pos_weight", buffer, persistent=False)
        self.label_smoothing = label_smoothing

    def _choose_weights(
        self, pos_weight: list[float] | Literal["auto"] | None, positives: list[int] | None, num_train: int | None
    ) -> list[float] | None:
        if pos_weight == "auto":
            if positives is None or num_train is None:
                problem = "needs a task that counts its labels and training samples"
                raise ConfigError(format_error("pos_weight", problem, "Use loss.pos_weight=null", value=pos_weight))
            return balance_pos_weight(positives, num_train)
        if pos_weight is not None and self.num_outputs not in (None, len(pos_weight)):
            problem = f"must have one value for each of the {self.num_outputs} labels"
            raise ConfigError(format_error("pos_weight", problem, value=pos_weight))
        return pos_weight

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the entries: shape (), float32 (float64 for float64 logits)."""
        return self.row_terms(output, target).sum()

    def row_terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the terms of the sum, (B, C)."""
        logits, labels, ignored = prepare_labels(output, target, self.ignore_index)
        weight = self.pos_weight
        if weight is not None and weight.shape != logits.shape[1:]:
            raise ValueError(f"{len(weight)} values of pos_weight for an output of {logits.shape[1]} labels")
        entries = F.binary_cross_entropy_with_logits(
            logits,
            smooth_labels(labels, self.label_smoothing),
            pos_weight=None if weight is None else weight.to(logits.dtype),
            reduction="none",
        )
        return entries.masked_fill(ignored, 0)
