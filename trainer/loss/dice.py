"""Dice loss over classes, or over several labels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainer.errors import format_error, raise_if_any
from trainer.loss.classification import at_least_float32, count_targets, flatten
from trainer.loss.multilabel import ignore_index_faults, label_entries
from trainer.ranges import positive
from trainer.targets import check_classes, check_multi_hot

_AXES = {"batch": (0, 1), "sample": (1,), "class": (0,)}


class Dice(nn.Module):
    """One minus the soft Dice coefficient of the probabilities p with the targets y, both (B, C).

        1 - (2 * sum(p * y) + smooth) / (sum(p) + sum(y) + smooth)

    Milletari et al. 2016, https://arxiv.org/abs/1606.04797, with plain sums in the denominator as in Sudre et al. 2017,
    https://arxiv.org/abs/1707.03237. Classes, logits (..., C) and int64 (...,): p is the softmax, y is one-hot. Several
    labels, logits and float targets (B, C): p is the sigmoid. `per` says what the sums go over:

        batch    all entries: one coefficient
        class    the rows: one coefficient a class, of which the mean is taken
        sample   the classes: one coefficient a row, of which the sum is taken

    The value is a sum over rows: the coefficient's loss times their number where it is a statistic of the whole batch
    (batch, class). Accumulation does not merge such batches: the step then is the mean over its micro-batches' own
    statistics, weighted by their rows. With `per=sample` it is a true sum, and micro-batches add up exactly. The
    divisor of a step, `num_targets`, counts rows; a row of labels is ignored when all of its entries are.

    Args:
        smooth: Added to numerator and denominator; above 0.
        per: What a coefficient is taken over.
        ignore_index: The target, a row's class or a label's entry, that is left out of all sums.
        num_outputs: C, where it is known.

    Raises:
        ConfigError: A value is out of range.
    """

    targets: ClassVar[tuple[str, ...]] = ("class", "multi_hot")

    def __init__(
        self,
        smooth: float,
        per: Literal["batch", "sample", "class"],
        ignore_index: int,
        num_outputs: int | None = None,
    ) -> None:
        super().__init__()
        known = per in _AXES
        raise_if_any(
            positive("smooth", smooth),
            None if known else format_error("per", f"must be one of {', '.join(_AXES)}", value=per),
        )
        self.smooth = smooth
        self.per = per
        self.ignore_index = ignore_index
        self.num_outputs = num_outputs

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The loss times the number of rows: shape (), float32 (float64 for float64 logits)."""
        p, y = self._labels(output, target) if target.is_floating_point() else self._classes(output, target)
        axes = _AXES[self.per]
        common = (p * y).sum(axes)
        loss = 1 - (2 * common + self.smooth) / (p.sum(axes) + y.sum(axes) + self.smooth)
        return loss.sum() if self.per == "sample" else loss.mean() * self.num_targets(target)

    def _classes(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and one-hot targets (B, C), 0 in rows that are ignored."""
        logits, classes = flatten(output, target)
        ignored = (classes == self.ignore_index)[:, None]
        p = at_least_float32(logits).softmax(dim=1).masked_fill(ignored, 0)
        y = torch.zeros_like(p).scatter_(1, classes[:, None].masked_fill(ignored, 0), 1)
        return p, y.masked_fill_(ignored, 0)

    def _labels(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities and targets (B, C), 0 where an entry is ignored."""
        logits, labels, ignored = label_entries(output, target, self.ignore_index)
        return logits.sigmoid().masked_fill(ignored, 0), labels

    def num_targets(self, target: Tensor) -> Tensor:
        """How many rows are not ignored: int64, shape ()."""
        if not target.is_floating_point():
            return count_targets(target, self.ignore_index)
        return (target != self.ignore_index).any(dim=1).sum()

    def check(self, target: Tensor) -> None:
        """Raises RowError unless the targets are classes or labels."""
        if not target.is_floating_point():
            check_classes(target, self.num_outputs, self.ignore_index)
            return
        raise_if_any(*ignore_index_faults(self.ignore_index))
        check_multi_hot(target, self.num_outputs, self.ignore_index)
