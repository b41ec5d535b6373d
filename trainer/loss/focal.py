"""Focal loss over classes, or over several labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.constraints import BelowOne, NonNegative, Probability, validated
from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.loss.classification import (
    check_class_targets,
    class_rows,
    class_weights,
    count_rows,
    count_targets,
    num_classes_of,
    weight_faults,
)
from trainer.loss.multilabel import ignore_index_faults, label_entries, positive_shares, smoothed
from trainer.targets import check_multi_hot

_LABEL_ALPHA = 0.25


class Focal(nn.Module):
    """Focal loss: (1 - p_t) ** gamma times the cross entropy, where p_t is the probability of the target.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, eq. 5. What the target is decides between two forms:

    Classes, logits (..., C) and int64 (...,) or shares (B, C): p is the softmax, a target is a row. The cross entropy
    is the weighted, smoothed one of `trainer.loss.classification` with alpha for its weights; gamma 0 is `CrossEntropy`
    to the bit.

    Several labels, logits (B, C) and float (B, C) of 0 and 1: p is the sigmoid, a target is an entry. The cross
    entropy is the smoothed one of `trainer.loss.multilabel` with the weights alpha for positives and 1 - alpha for
    negatives.

    Smoothing changes the cross entropy and leaves the factor in front of it alone. The divisor of a step,
    `num_targets`, counts targets and not their weights.

    Args:
        gamma: How fast well-classified targets lose weight; at least 0.
        alpha: In [0, 1], one factor or one for each class or label; None for none with classes and 0.25 with labels.
            "auto" balances by the training counts: the inverse class frequency, of mean 1; for a label the negatives'
            share. "effective_number" is the same with effective numbers for counts.
        label_smoothing: Share of the target spread evenly over the classes, or over yes and no, in [0, 1).
        ignore_index: The target that is left out of the sum and of the count.
        class_counts: Training targets of each class, or positives of each label, where the task counts them.
        num_outputs: C, where it is known.
        num_train: Training samples, where they are known.
        train_target: What a floating target is: `shares`, or else labels.

    Raises:
        ConfigError: A value is out of range, or `alpha` does not fit the classes.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "shares", "multi_hot")
    alpha: Tensor | None
    label_alpha: Tensor | None

    @validated()
    def __init__(
        self,
        gamma: NonNegative,
        alpha: Probability | list[float] | Literal["auto", "effective_number"] | None,
        label_smoothing: BelowOne,
        ignore_index: int,
        class_counts: list[int] | None = None,
        num_outputs: int | None = None,
        num_train: int | None = None,
        train_target: str | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes_of(class_counts, num_outputs)
        if isinstance(alpha, int | float):
            self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32), persistent=False)
        else:
            raise_if_any(*weight_faults("alpha", alpha, class_counts, self.num_classes, largest=1.0))
            self.register_buffer("alpha", class_weights(alpha, class_counts), persistent=False)
        self.register_buffer("label_alpha", self._positive_share(alpha, class_counts, num_train), persistent=False)
        self.gamma = gamma
        self.floats_are_labels = train_target != "shares"
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def _positive_share(
        self, alpha: float | list[float] | str | None, positives: list[int] | None, num_train: int | None
    ) -> Tensor | None:
        """Alpha of the labels, shape () or (C,); None where the training samples were to be known."""
        if alpha is None:
            return torch.tensor(_LABEL_ALPHA)
        if not isinstance(alpha, str):
            return self.alpha
        if positives is None or num_train is None:
            return None
        return torch.tensor(positive_shares(positives, num_train, effective=alpha == "effective_number"))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the targets: shape (), float32 (float64 for float64 logits)."""
        return self._labels(output, target) if self._has_labels(target) else self._classes(output, target)

    def _has_labels(self, target: Tensor) -> bool:
        return target.is_floating_point() and self.floats_are_labels

    def _classes(self, output: Tensor, target: Tensor) -> Tensor:
        alpha = self.alpha
        if alpha is not None and alpha.ndim == 0:
            alpha = alpha.expand(output.shape[-1])
        rows = class_rows(output, target, alpha, self.label_smoothing, self.ignore_index)
        if self.gamma == 0:
            return rows.total(rows.cross_entropy)
        # expm1 keeps the digits of 1 - p where p is near 1. The floor keeps the slope of x ** gamma finite at 0 for
        # gamma < 1, where inf * 0 would be NaN.
        miss = (-torch.expm1(-rows.surprise)).clamp_min(torch.finfo(rows.surprise.dtype).tiny)
        return rows.total(miss.pow(self.gamma) * rows.cross_entropy)

    def _labels(self, output: Tensor, target: Tensor) -> Tensor:
        logits, labels, ignored = label_entries(output, target, self.ignore_index)
        alpha = self.label_alpha
        assert alpha is not None, "the number of training samples is not known"
        if alpha.ndim == 1 and alpha.shape != logits.shape[1:]:
            raise ValueError(f"{len(alpha)} values of alpha for an output of {logits.shape[1]} labels")
        alpha = alpha.to(logits.dtype)
        log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
        share = smoothed(labels, self.label_smoothing)
        entries = -(alpha * share * log_yes + (1 - alpha) * (1 - share) * log_no)
        if self.gamma > 0:
            # As a logarithm 1 - p_t never underflows, so its power has a finite slope for gamma < 1, too.
            entries = (self.gamma * torch.where(labels > 0, log_no, log_yes)).exp() * entries
        return entries.masked_fill(ignored, 0).sum()

    def num_targets(self, target: Tensor) -> Tensor:
        """How many targets, rows or entries, are not ignored: int64, shape ()."""
        count = count_targets if self._has_labels(target) else count_rows
        return count(target, self.ignore_index)

    def check(self, target: Tensor) -> None:
        """Raises RowError unless the targets are classes, shares or labels, ConfigError where they do not fit it."""
        if not self._has_labels(target):
            check_class_targets(target, self.num_classes, self.ignore_index)
            return
        raise_if_any(*ignore_index_faults(self.ignore_index))
        if self.label_alpha is None:
            problem = "the balance of labels needs a task that counts its training samples"
            raise ConfigError(format_error("alpha", problem, "Use alpha=null"))
        check_multi_hot(target, self.num_classes, self.ignore_index)
