"""Metrics over the tokens of a language model, or over the words of a tagger."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

_ELEMENTS = 2**22
"""Logits that are normalized at a time: an evaluation needs no second tensor of the size of its logits."""


class TokenAccuracy(Metric):
    """Share of targets whose class has the largest score.

    Args:
        ignore_index: The target that is left out.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    num_right: Tensor
    num_targets: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        for name in ("num_right", "num_targets"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Takes scores (..., C) and classes (...,)."""
        kept = target != self.ignore_index
        self.num_right += (kept & (output.argmax(dim=-1) == target)).sum()
        self.num_targets += kept.sum()

    def compute(self) -> Tensor:
        return self.num_right / self.num_targets


class Perplexity(Metric):
    """exp of the mean cross entropy of the targets.

    Args:
        ignore_index: The target that is left out.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    cross_entropy: Tensor
    num_targets: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.add_state("cross_entropy", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("num_targets", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Takes logits or log-probabilities (..., C) and classes (...,)."""
        logits, target = output.flatten(0, -2), target.flatten()
        rows = max(1, _ELEMENTS // logits.shape[1])
        for start in range(0, len(target), rows):
            piece, classes = logits[start : start + rows].float(), target[start : start + rows]
            self.cross_entropy += F.cross_entropy(piece, classes, ignore_index=self.ignore_index, reduction="sum")
        self.num_targets += (target != self.ignore_index).sum()

    def compute(self) -> Tensor:
        return (self.cross_entropy / self.num_targets).exp()
