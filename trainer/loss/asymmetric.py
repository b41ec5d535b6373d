"""Asymmetric loss over several labels."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.constraints import BelowOne, NonNegative, validated
from trainer.loss.classification import IGNORE_INDEX_RULES
from trainer.loss.multilabel import MultilabelLoss, prepare_labels


class Asymmetric(MultilabelLoss):
    """Binary cross entropy that weights easy negatives down more than easy positives; logits and labels (B, C).

    With p = sigmoid(logit) and q = max(p - clip, 0),

        positives   (1 - p) ** gamma_positive * -log p
        negatives   q ** gamma_negative * -log(1 - q)

    so a negative with a probability below `clip` adds nothing (Ridnik et al. 2021, https://arxiv.org/abs/2009.14119,
    eq. 7). The gradient includes the focusing factors. With gamma_positive, gamma_negative and clip of 0 it equals
    `BinaryCrossEntropy`. The sum is over the entries; `num_targets` counts the entries that are not ignored.

    Args:
        gamma_negative: Focusing exponent of negatives, at least 0.
        gamma_positive: Focusing exponent of positives, at least 0.
        clip: Probability below which a negative adds nothing, in [0, 1).
        ignore_index: Entry that is ignored in the sum and in the count.
        num_outputs: Number of labels C, if it is known.
    """

    @validated(*IGNORE_INDEX_RULES)
    def __init__(
        self,
        gamma_negative: NonNegative,
        gamma_positive: NonNegative,
        clip: BelowOne,
        ignore_index: int,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__(ignore_index, num_outputs)
        self.gamma_negative = gamma_negative
        self.gamma_positive = gamma_positive
        self.clip = clip

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the entries: shape (), float32 (float64 for float64 logits)."""
        logits, labels, ignored = prepare_labels(output, target, self.ignore_index)
        log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
        positives = log_yes if self.gamma_positive == 0 else (self.gamma_positive * log_no).exp() * log_yes
        log_rest = log_no
        if self.clip > 0:
            # log(1 - q) = log(min(1 - p + clip, 1)) without computing 1 - p, which loses all digits for p near 1.
            log_rest = torch.logaddexp(log_no, log_no.new_tensor(math.log(self.clip))).clamp_max(0)
        negatives = log_rest
        if self.gamma_negative > 0:
            # The lower bound keeps the slope of q ** gamma finite at 0 for gamma < 1; inf * 0 would be NaN.
            q = (-torch.expm1(log_rest)).clamp_min(torch.finfo(logits.dtype).tiny)
            negatives = q.pow(self.gamma_negative) * log_rest
        return -torch.where(labels > 0, positives, negatives).masked_fill(ignored, 0).sum()
