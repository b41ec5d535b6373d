"""Focal loss over classes or over several labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.constraints import BelowOne, NonNegative, Rule, validated
from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.loss.classification import (
    IGNORE_INDEX_RULES,
    Factors,
    check_class_targets,
    compute_class_terms,
    count_class_targets,
    count_not_ignored,
    find_weight_problems,
    infer_num_classes,
    make_class_weights,
)
from trainer.loss.multilabel import balance_alpha, prepare_labels, smooth_labels
from trainer.targets import check_multi_hot

_LABEL_ALPHA = 0.25


class Focal(nn.Module):
    """Focal loss: (1 - p_t) ** gamma times the cross entropy; p_t is the probability of the target.

    Lin et al. 2017, https://arxiv.org/abs/1708.02002, eq. 5. There are two forms, chosen by the type of the target:

    Classes, logits (..., C) and int64 (...,) or shares (B, C): p is the softmax, a target is a row. The cross entropy
    is the weighted, smoothed one of `trainer.loss.classification` with alpha as its weights; gamma 0 is `CrossEntropy`.

    Several labels, logits (B, C) and float (B, C) of 0 and 1: p is the sigmoid, a target is an entry. The cross
    entropy is the smoothed one of `trainer.loss.multilabel` with the weights alpha for positives and 1 - alpha for
    negatives.

    Label smoothing changes only the cross entropy, not the factor in front of it. `num_targets`, the divisor of a step,
    counts targets, not their weights.

    Args:
        gamma: Focusing exponent, at least 0: the larger, the less weight well-classified targets have.
        alpha: One factor, or one per class or label, in their order or by name, at least 0 and for labels at most 1;
            None for no factor with classes and 0.25 with labels. "auto" balances by the training counts: the inverse
            class frequency with a mean of 1, or the fraction of negatives of each label. "effective_number" uses
            effective numbers of samples as counts.
        label_smoothing: Share of the target spread evenly over the classes, or over yes and no, in [0, 1).
        ignore_index: Target that is ignored in the sum and in the count.
        class_counts: Training targets of each class, or positives of each label, if the task counts them.
        num_outputs: Number of classes or labels C, if it is known.
        num_train: Number of training samples, if it is known.
        class_names: Names of the classes or labels, if the task has them.
        train_target: The type of floating-point targets: shares if "shares", else labels.

    Raises:
        ConfigError: `alpha` does not fit the classes.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "shares", "multi_hot")
    sums_over_rows: ClassVar[bool] = True
    alpha: Tensor | None
    label_alpha: Tensor | None

    @validated(
        Rule("not isinstance(alpha, list) or any(alpha)", key="alpha", problem="must have a value greater than 0"),
        Rule(
            "not isinstance(alpha, dict) or any(alpha[name] for name in alpha)",
            key="alpha",
            problem="must have a value greater than 0",
        ),
        *IGNORE_INDEX_RULES,
    )
    def __init__(
        self,
        gamma: NonNegative,
        alpha: NonNegative | Factors | Literal["auto", "effective_number"] | None,
        label_smoothing: BelowOne,
        ignore_index: int,
        class_counts: list[int] | None = None,
        num_outputs: int | None = None,
        num_train: int | None = None,
        train_target: str | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = infer_num_classes(class_counts, num_outputs)
        if isinstance(alpha, int | float):
            self.register_buffer("alpha", torch.tensor(alpha, dtype=torch.float32), persistent=False)
        else:
            raise_if_any(*find_weight_problems("alpha", alpha, class_counts, self.num_classes, class_names))
            self.register_buffer("alpha", make_class_weights(alpha, class_counts, class_names), persistent=False)
        self.register_buffer("label_alpha", self._choose_label_alpha(alpha, class_counts, num_train), persistent=False)
        self.gamma = gamma
        self.float_targets_are_labels = train_target != "shares"
        self.label_smoothing = label_smoothing
        self.ignore_index = ignore_index

    def _choose_label_alpha(
        self, alpha: float | Factors | str | None, positives: list[int] | None, num_train: int | None
    ) -> Tensor | None:
        """Return alpha for labels, shape () or (C,); None if it depends on an unknown number of training samples."""
        if alpha is None:
            return torch.tensor(_LABEL_ALPHA)
        if not isinstance(alpha, str):
            return self.alpha
        if positives is None or num_train is None:
            return None
        return torch.tensor(balance_alpha(positives, num_train, effective=alpha == "effective_number"))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the targets: shape (), float32 (float64 for float64 logits)."""
        return self.row_terms(output, target).sum()

    def row_terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the terms of the sum: (B,), or (B, C) for shares or labels; leading axes are flattened."""
        return self._label_terms(output, target) if self._has_labels(target) else self._class_terms(output, target)

    def _has_labels(self, target: Tensor) -> bool:
        return target.is_floating_point() and self.float_targets_are_labels

    def _class_terms(self, output: Tensor, target: Tensor) -> Tensor:
        alpha = self.alpha
        if alpha is not None and alpha.ndim == 0:
            alpha = alpha.expand(output.shape[-1])
        terms = compute_class_terms(output, target, alpha, self.label_smoothing, self.ignore_index)
        if self.gamma == 0:
            return terms.weighted(terms.cross_entropy)
        # expm1 keeps the digits of 1 - p for p near 1. The lower bound keeps the slope of x ** gamma finite at 0 for
        # gamma < 1; inf * 0 would be NaN.
        miss = (-torch.expm1(-terms.nll)).clamp_min(torch.finfo(terms.nll.dtype).tiny)
        return terms.weighted(miss.pow(self.gamma) * terms.cross_entropy)

    def _label_terms(self, output: Tensor, target: Tensor) -> Tensor:
        logits, labels, ignored = prepare_labels(output, target, self.ignore_index)
        alpha = self.label_alpha
        assert alpha is not None, "the number of training samples is unknown"
        if alpha.ndim == 1 and alpha.shape != logits.shape[1:]:
            raise ValueError(f"{len(alpha)} values of alpha for an output of {logits.shape[1]} labels")
        alpha = alpha.to(logits.dtype)
        log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
        share = smooth_labels(labels, self.label_smoothing)
        entries = -(alpha * share * log_yes + (1 - alpha) * (1 - share) * log_no)
        if self.gamma > 0:
            # As a logarithm, 1 - p_t never underflows, so its power has a finite slope for gamma < 1 too.
            entries = (self.gamma * torch.where(labels > 0, log_no, log_yes)).exp() * entries
        return entries.masked_fill(ignored, 0)

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the targets, rows or entries, that are not ignored: int64, shape ()."""
        count = count_not_ignored if self._has_labels(target) else count_class_targets
        return count(target, self.ignore_index)

    def check(self, target: Tensor) -> None:
        """Raise RowError unless the targets are classes, shares or labels; ConfigError if `alpha` does not fit."""
        if not self._has_labels(target):
            check_class_targets(target, self.num_classes, self.ignore_index)
            return
        if self.label_alpha is None:
            problem = "balancing labels needs a task that counts its training samples"
            raise ConfigError(format_error("loss.alpha", problem, "Use loss.alpha=null"))
        if bool((self.label_alpha > 1).any()):
            raise ConfigError(
                format_error("loss.alpha", "must be between 0 and 1 for labels", value=self.label_alpha.tolist())
            )
        check_multi_hot(target, self.num_classes, self.ignore_index)
