"""Asymmetric loss over several labels."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.errors import raise_if_any
from trainer.loss.classification import count_targets
from trainer.loss.multilabel import ignore_index_faults, label_entries
from trainer.ranges import below_one, not_negative
from trainer.targets import check_multi_hot


class Asymmetric(nn.Module):
    """Binary cross entropy that forgets easy negatives sooner than easy positives; logits and labels (B, C).

    With p = sigmoid(logit) and q = max(p - clip, 0),

        positives   (1 - p) ** gamma_positive * -log p
        negatives   q ** gamma_negative * -log(1 - q)

    so a negative below `clip` adds nothing (Ridnik et al. 2021, https://arxiv.org/abs/2009.14119, eq. 7). The factors
    are differentiated, too. gamma_positive, gamma_negative and clip of 0 are `BinaryCrossEntropy`. The sum over the
    entries; `num_targets` counts those that are not ignored.

    Args:
        gamma_negative: How fast well-classified negatives lose weight; at least 0.
        gamma_positive: How fast well-classified positives lose weight; at least 0.
        clip: The probability below which a negative is done, in [0, 1).
        ignore_index: The entry that is left out of the sum and of the count.
        num_outputs: C, where it is known.

    Raises:
        ConfigError: A value is out of range.
    """

    targets: ClassVar[tuple[str, ...]] = ("multi_hot",)

    def __init__(
        self,
        gamma_negative: float,
        gamma_positive: float,
        clip: float,
        ignore_index: int,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        raise_if_any(
            not_negative("gamma_negative", gamma_negative),
            not_negative("gamma_positive", gamma_positive),
            below_one("clip", clip),
            *ignore_index_faults(ignore_index),
        )
        self.gamma_negative = gamma_negative
        self.gamma_positive = gamma_positive
        self.clip = clip
        self.ignore_index = ignore_index
        self.num_outputs = num_outputs

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the entries: shape (), float32 (float64 for float64 logits)."""
        logits, labels, ignored = label_entries(output, target, self.ignore_index)
        log_yes, log_no = F.logsigmoid(logits), F.logsigmoid(-logits)
        positives = log_yes if self.gamma_positive == 0 else (self.gamma_positive * log_no).exp() * log_yes
        log_rest = log_no
        if self.clip > 0:
            # log(1 - q) = log(min(1 - p + clip, 1)) without 1 - p, which has no digits left where p is near 1.
            log_rest = torch.logaddexp(log_no, log_no.new_tensor(math.log(self.clip))).clamp_max(0)
        negatives = log_rest
        if self.gamma_negative > 0:
            # The floor keeps the slope of q ** gamma finite at 0 for gamma < 1, where inf * 0 would be NaN.
            q = (-torch.expm1(log_rest)).clamp_min(torch.finfo(logits.dtype).tiny)
            negatives = q.pow(self.gamma_negative) * log_rest
        return -torch.where(labels > 0, positives, negatives).masked_fill(ignored, 0).sum()

    def num_targets(self, target: Tensor) -> Tensor:
        """How many entries of (B, C) are not ignored: int64, shape ()."""
        return count_targets(target, self.ignore_index)

    def check(self, target: Tensor) -> None:
        """Raises RowError unless the targets are labels."""
        check_multi_hot(target, self.num_outputs, self.ignore_index)
