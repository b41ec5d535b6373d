"""Dice loss over classes or over several labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainer.constraints import Positive, Rule, validated
from trainer.loss.classification import IGNORE_INDEX_RULES, count_not_ignored, flatten_rows, promote_to_float32
from trainer.loss.multilabel import prepare_labels
from trainer.targets import check_classes, check_multi_hot

_AXES = {"batch": (0, 1), "sample": (1,), "class": (0,)}


class Dice(nn.Module):
    """One minus the soft Dice coefficient of the probabilities p with the targets y, both (B, C).

        1 - (2 * sum(p * y) + smooth) / (sum(p) + sum(y) + smooth)

    Milletari et al. 2016, https://arxiv.org/abs/1606.04797, with plain sums in the denominator as in Sudre et al. 2017,
    https://arxiv.org/abs/1707.03237. For classes, logits (..., C) and int64 (...,), p is the softmax and y is one-hot.
    For several labels, logits and float targets (B, C), p is the sigmoid. `per` sets the scope of the sums:

        batch    all entries: one coefficient
        class    the rows: one coefficient per class, and their mean
        sample   the classes: one coefficient per row, and their sum

    The loss is a sum over rows: for batch and class, which are statistics of the whole batch, the value times the
    number of rows. With `per=sample` the losses of micro-batches add up. `num_targets`, the divisor of a step, counts
    rows; a row of labels is ignored if all its entries are ignored.

    Args:
        smooth: Added to numerator and denominator, greater than 0.
        per: Scope of a coefficient.
        ignore_index: Target, a row's class or a label's entry, that is ignored in all sums.
        num_outputs: Number of classes or labels C, if it is known.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "multi_hot")
    statistic_by: ClassVar[Mapping[str, tuple[str, ...]]] = {"per": ("batch", "class")}

    @validated(
        Rule("per in ('batch', 'sample', 'class')", key="per", problem="must be one of batch, sample, class"),
        *IGNORE_INDEX_RULES,
    )
    def __init__(
        self,
        smooth: Positive,
        per: Literal["batch", "sample", "class"],
        ignore_index: int,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        self.smooth = smooth
        self.per = per
        self.is_batch_statistic = per in self.statistic_by["per"]
        self.ignore_index = ignore_index
        self.num_outputs = num_outputs

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the loss times the number of rows: shape (), float32 (float64 for float64 logits)."""
        p, y = self._prepare_labels(output, target) if target.is_floating_point() else self._one_hot(output, target)
        axes = _AXES[self.per]
        common = (p * y).sum(axes)
        loss = 1 - (2 * common + self.smooth) / (p.sum(axes) + y.sum(axes) + self.smooth)
        return loss.sum() if self.per == "sample" else loss.mean() * self.num_targets(target)

    def _one_hot(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and one-hot targets (B, C), 0 in ignored rows."""
        logits, classes = flatten_rows(output, target)
        ignored = (classes == self.ignore_index)[:, None]
        p = promote_to_float32(logits).softmax(dim=1).masked_fill(ignored, 0)
        y = torch.zeros_like(p).scatter_(1, classes[:, None].masked_fill(ignored, 0), 1)
        return p, y.masked_fill_(ignored, 0)

    def _prepare_labels(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and targets (B, C), 0 in ignored entries."""
        logits, labels, ignored = prepare_labels(output, target, self.ignore_index)
        return logits.sigmoid().masked_fill(ignored, 0), labels

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the rows that are not ignored: int64, shape ()."""
        if not target.is_floating_point():
            return count_not_ignored(target, self.ignore_index)
        return (target != self.ignore_index).any(dim=1).sum()

    def check(self, target: Tensor) -> None:
        """Raise RowError unless the targets are classes or labels."""
        check = check_multi_hot if target.is_floating_point() else check_classes
        check(target, self.num_outputs, self.ignore_index)
