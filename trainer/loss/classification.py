"""What the losses over integer class targets share: class weights, label smoothing, ignored targets.

With class probabilities p (softmax of the logits), class weights w and label smoothing e over C classes, a row
with target y has the cross entropy

    (1 - e) * w[y] * -log p[y]  +  e / C * sum_c w[c] * -log p[c]

(Szegedy et al. 2016, https://arxiv.org/abs/1512.00567; the weights enter the smoothing term as they do in torch).
An ignored row has none. Everything is computed in float32, or in float64 where the logits are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.errors import ConfigError, explain


def class_weights(
    name: str, weights: Sequence[float] | Literal["auto"] | None, class_counts: Sequence[int] | None, *, largest: float
) -> Tensor | None:
    """The weights of the C classes, float32 (C,); None for none.

    Args:
        name: The parameter's name, for a message.
        weights: One weight a class, or "auto": n / (K * count) for the K classes that occur among the n training
            targets, so that their mean over those targets is 1. A class that never occurs has the weight 1: it is
            never a target in training, but it takes part in the smoothing term.
        class_counts: Training targets of each class (C entries); None where the task does not count classes.
        largest: The largest weight a user may give.

    Raises:
        ConfigError: There are no class counts, not one weight for each class, or a weight is out of range.
    """
    if weights is None:
        return None
    if class_counts is None:
        problem = "class weights need a task whose classes are counted"
        raise ConfigError(explain(name, problem, f"Use {name}=null", value=weights))
    if weights == "auto":
        return torch.tensor(_balanced(class_counts), dtype=torch.float32)
    if len(weights) != len(class_counts):
        problem = f"needs one value for each of the {len(class_counts)} classes"
        raise ConfigError(explain(name, problem, value=weights))
    if not all(0 <= weight <= largest and math.isfinite(weight) for weight in weights):
        allowed = "finite and not negative" if math.isinf(largest) else f"between 0 and {largest:g}"
        raise ConfigError(explain(name, f"every value must be {allowed}", value=weights))
    return torch.tensor(weights, dtype=torch.float32)


def _balanced(counts: Sequence[int]) -> list[float]:
    num_targets = sum(counts)
    num_occurring = sum(count > 0 for count in counts)
    return [num_targets / (num_occurring * count) if count > 0 else 1.0 for count in counts]


def check_label_smoothing(label_smoothing: float) -> None:
    """Raises ConfigError unless `label_smoothing` is in [0, 1)."""
    if not 0 <= label_smoothing < 1:
        raise ConfigError(explain("label_smoothing", "must be at least 0 and below 1", value=label_smoothing))


def at_least_float32(output: Tensor) -> Tensor:
    """`output` in float32, or as it is where it is float64."""
    return output if output.dtype == torch.float64 else output.float()


def count_targets(target: Tensor, ignore_index: int) -> Tensor:
    """How many of `target` (B,) are not ignored: int64, shape ()."""
    return (target != ignore_index).sum()


def cross_entropy_sum(
    logits: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int
) -> Tensor:
    """The sum of the rows' cross entropies: logits (B, C), target (B,), weight (C,) to shape ()."""
    return F.cross_entropy(
        logits,
        target,
        None if weight is None else weight.to(logits.dtype),
        ignore_index=ignore_index,
        label_smoothing=label_smoothing,
        reduction="sum",
    )


def cross_entropy_rows(
    log_p: Tensor, surprise: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int
) -> Tensor:
    """Each row's cross entropy, (B,), from what is already known of the row; 0 where it is ignored.

    Args:
        log_p: Log-probabilities (B, C).
        surprise: -log p of the target (B,), 0 where it is ignored.
        target: Classes (B,), or `ignore_index`.
        weight: Class weights (C,), or None.
        label_smoothing: In [0, 1).
        ignore_index: The target that is left out.
    """
    ignored = target == ignore_index
    weight = None if weight is None else weight.to(log_p.dtype)
    rows = surprise if weight is None else surprise * weight[target.masked_fill(ignored, 0)]
    if label_smoothing == 0:
        return rows
    # A sum, divided afterwards: the gradient of a mean over the classes would be one more tensor of (B, C).
    spread = -(log_p if weight is None else log_p * weight).sum(dim=1).masked_fill(ignored, 0)
    return (1 - label_smoothing) * rows + label_smoothing / log_p.shape[1] * spread
