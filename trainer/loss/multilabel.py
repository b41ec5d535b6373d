"""Shared parts of the losses over several labels: C yes-or-no questions per sample, targets (B, C) of 0 and 1.

A label with the logit x is a softmax over two classes, no and yes, with the logits 0 and x. The formulas of
`trainer.loss.classification` therefore apply to each entry of (B, C). With p = sigmoid(x), the weights w of the two
answers and label smoothing e, an entry y has the cross entropy

    H = w[yes] * s * -log p  +  w[no] * (1 - s) * -log(1 - p)    with s = (1 - e) * y + e / 2

An entry equal to `ignore_index` adds nothing to the loss, the gradient or the count. A loss is the sum over the
entries, and `num_targets` counts the entries that are not ignored: B * C if none is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from trainer.loss.classification import count_not_ignored, effective_number, promote_to_float32
from trainer.targets import check_multi_hot


class MultilabelLoss(nn.Module):
    """Base class of the losses that take only labels.

    Args:
        ignore_index: Entry that is ignored.
        num_outputs: Number of labels C, if it is known.
    """

    targets: ClassVar[tuple[str, ...]] = ("multi_hot",)

    def __init__(self, ignore_index: int, num_outputs: int | None) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.num_outputs = num_outputs

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the entries of (B, C) that are not ignored: int64, shape ()."""
        return count_not_ignored(target, self.ignore_index)

    def check(self, target: Tensor) -> None:
        """Raise RowError unless the targets are labels."""
        check_multi_hot(target, self.num_outputs, self.ignore_index)


class LabelEntries(NamedTuple):
    """Logits and targets (B, C) in one type.

    Attributes:
        logits: Logits in float32, or in float64 if they already are.
        target: 0 and 1 in the type of the logits; 0 if the entry is ignored.
        ignored: True for ignored entries.
    """

    logits: Tensor
    target: Tensor
    ignored: Tensor


def prepare_labels(output: Tensor, target: Tensor, ignore_index: int) -> LabelEntries:
    """Bring logits (B, C) and targets (B, C) into one type.

    Raises:
        ValueError: The shapes differ or are not (B, C).
    """
    if output.ndim != 2 or output.shape != target.shape:
        shapes = f"an output {tuple(output.shape)} and a target {tuple(target.shape)}"
        raise ValueError(f"{shapes} do not fit: both must be (B, C), a score and a 0 or 1 for each label")
    logits = promote_to_float32(output)
    ignored = target == ignore_index
    return LabelEntries(logits, target.to(logits.dtype).masked_fill(ignored, 0), ignored)


def smooth_labels(target: Tensor, label_smoothing: float) -> Tensor:
    """Replace the targets 0 and 1 by `label_smoothing` / 2 and 1 - `label_smoothing` / 2."""
    return target if label_smoothing == 0 else target * (1 - label_smoothing) + label_smoothing / 2


def balance_pos_weight(positives: Sequence[int], num_train: int) -> list[float]:
    """Return negatives / positives of each label: with this weight, positives and negatives have the same total.

    The weight is 1 for a label that is always or never set in the training split: there is nothing to balance.
    """
    return [(num_train - count) / count if 0 < count < num_train else 1.0 for count in positives]


def balance_alpha(positives: Sequence[int], num_train: int, *, effective: bool) -> list[float]:
    """Return the share of each label's weight for its positives that gives positives and negatives the same total.

    The share is the fraction of negatives, by samples or by effective numbers of samples. It is 0.5 for a label that is
    always or never set in the training split.
    """
    shares = []
    for count in positives:
        yes, no = float(count), float(num_train - count)
        if effective:
            yes, no = effective_number(count), effective_number(num_train - count)
        shares.append(no / (yes + no) if 0 < count < num_train else 0.5)
    return shares
