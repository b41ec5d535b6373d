"""What the losses over several labels share: C yes-or-no questions a sample, targets (B, C) of 0 and 1.

A label with the logit x is a softmax over two classes, no and yes, with the logits 0 and x, so the algebra of
`trainer.loss.classification` holds with a target being one entry of (B, C). With p = sigmoid(x), the weights w of the
two answers and label smoothing e, an entry y has the cross entropy

    H = w[yes] * s * -log p  +  w[no] * (1 - s) * -log(1 - p)    with s = (1 - e) * y + e / 2

An entry equal to `ignore_index` adds nothing to the value, to the gradient or to the count. A loss is the sum over
the entries, and `num_targets` counts those that are not ignored: B * C without any.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from trainer.errors import format_error
from trainer.loss.classification import at_least_float32, effective_number


class LabelEntries(NamedTuple):
    """Logits and targets (B, C), as they are compared.

    Attributes:
        logits: In float32, or in float64 where they are.
        target: 0 and 1 in the type of the logits, 0 where the entry is ignored.
        ignored: Which entries are left out.
    """

    logits: Tensor
    target: Tensor
    ignored: Tensor


def label_entries(output: Tensor, target: Tensor, ignore_index: int) -> LabelEntries:
    """The entries of logits (B, C) with targets (B, C).

    Raises:
        ValueError: The shapes are not the same, or not (B, C).
    """
    if output.ndim != 2 or output.shape != target.shape:
        found = f"an output {tuple(output.shape)} and a target {tuple(target.shape)}"
        raise ValueError(f"{found} do not fit: both must be (B, C), a score and a 0 or 1 for each label")
    logits = at_least_float32(output)
    ignored = target == ignore_index
    return LabelEntries(logits, target.to(logits.dtype).masked_fill(ignored, 0), ignored)


def smoothed(target: Tensor, label_smoothing: float) -> Tensor:
    """s of the targets 0 and 1: `label_smoothing` / 2 and 1 - `label_smoothing` / 2."""
    return target if label_smoothing == 0 else target * (1 - label_smoothing) + label_smoothing / 2


def positive_weights(positives: Sequence[int], num_train: int) -> list[float]:
    """Negatives / positives of each label: with this weight of its positives both answers have the same total.

    A label of which the training split has one answer only has nothing to balance: 1.
    """
    return [(num_train - count) / count if 0 < count < num_train else 1.0 for count in positives]


def positive_shares(positives: Sequence[int], num_train: int, *, effective: bool) -> list[float]:
    """The share of a label's weight that its positives get, so that both answers have the same total.

    It is the negatives' share of the samples, or of the effective numbers of both; 0.5 for a label of which the
    training split has one answer only.
    """
    shares = []
    for count in positives:
        yes, no = float(count), float(num_train - count)
        if effective:
            yes, no = effective_number(count), effective_number(num_train - count)
        shares.append(no / (yes + no) if 0 < count < num_train else 0.5)
    return shares


def ignore_index_faults(ignore_index: int) -> list[str]:
    """What is wrong with an `ignore_index` that is a label's 0 or 1."""
    if ignore_index not in (0, 1):
        return []
    remedy = "Use a value that no label has, -100 for one"
    return [format_error("ignore_index", "would leave out every such label", remedy, value=ignore_index)]
