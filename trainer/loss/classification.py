"""One algebra for the losses over classes: weights, label smoothing, focusing and ignored targets combine.

Notation: C classes, class probabilities p (softmax of a row's logits), class weights w, label smoothing e, a target y.

    cross entropy   H = (1 - e) * w[y] * -log p[y]  +  e / C * sum_c w[c] * -log p[c]
    focal           (1 - p[y]) ** gamma * H
    poly            H  +  epsilon * w[y] * (1 - t)    with t = (1 - e) * p[y] + e / C, the sum of the smoothed target
                                                      times p

Smoothing spreads the share e of the target over all classes (Szegedy et al. 2016, https://arxiv.org/abs/1512.00567);
the weights enter its term as they do in torch. Focusing multiplies what smoothing and weights made, and looks at the
probability of the target itself. gamma = 0, epsilon = 0 and e = 0 are the plain cross entropy, to the bit.

A target may also be shares s of the classes, as of two images that were mixed. Its loss is then the mean of the loss
over the classes, weighted by their shares: sum_y s[y] * loss(y). For the cross entropy that is torch's own with
probabilities.

A target equal to `ignore_index` is left out: its row adds nothing to the value, to the gradient or to the count.

Normalisation: a loss is the sum over the rows, and `num_targets` counts the targets that are not ignored. It is not
the sum of their weights, by which torch's weighted mean divides, so that a row weighs the same whatever else is in
its batch. Weights that come from the training data have the mean 1 over the training targets: both divisors then
agree on average, and the learning rate keeps its meaning.

Weights of a class with n of the N training targets, K classes having any:

    auto               N / (K * n), the inverse class frequency
    effective_number   proportional to (1 - b) / (1 - b ** n), b = 0.999, the inverse of the number of samples that are
                       not alike (Cui et al. 2019, https://arxiv.org/abs/1901.05555), scaled to the mean 1

A class that never occurs has the weight 1: it is no target in training, but it takes part in the smoothing term.

Logits (..., C) meet targets (...,): leading axes are flattened. Everything is computed in float32, or in float64
where the logits are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from trainer.errors import format_error
from trainer.loss.surprise import surprise_and_spread
from trainer.targets import check_classes, check_shares

Weights = Sequence[float] | Literal["auto", "effective_number"] | None
_BETA = 0.999


class ClassRows(NamedTuple):
    """What is known of each row, (B,), 0 where it is ignored; of targets that are shares, of each class, (B, C).

    Attributes:
        surprise: -log p[y].
        weight: w[y].
        cross_entropy: H, weighted and smoothed.
        shares: (B, C), where the targets are shares.
    """

    surprise: Tensor
    weight: Tensor
    cross_entropy: Tensor
    shares: Tensor | None = None

    def total(self, values: Tensor) -> Tensor:
        """The sum of a loss's values, of the shape of the others: shape ()."""
        return (values if self.shares is None else self.shares * values).sum()


def class_rows(
    output: Tensor, target: Tensor, weight: Tensor | None, label_smoothing: float, ignore_index: int
) -> ClassRows:
    """The rows of logits (..., C) with targets (...,), flattened, or of logits (B, C) with shares (B, C).

    Args:
        output: Logits (..., C).
        target: Classes (...,), or `ignore_index`; or, floating, shares.
        weight: Class weights (C,), or None.
        label_smoothing: In [0, 1).
        ignore_index: The target that is left out.

    Raises:
        ValueError: The shapes do not fit.
    """
    if target.is_floating_point():
        return _share_rows(output, target, weight, label_smoothing)
    logits, classes = flatten(output, target)
    num_classes = logits.shape[1]
    _check_weights(weight, num_classes)
    ignored = classes == ignore_index
    classes = classes.masked_fill(ignored, 0)
    surprise, spread = surprise_and_spread(logits, classes, weight, spread=label_smoothing > 0)
    surprise = surprise.masked_fill(ignored, 0)
    of_target = torch.ones_like(surprise) if weight is None else weight.to(surprise.dtype)[classes]
    of_target = of_target.masked_fill(ignored, 0)
    cross_entropy = of_target * surprise
    if spread is not None:
        share = label_smoothing / num_classes
        cross_entropy = (1 - label_smoothing) * cross_entropy + share * spread.masked_fill(ignored, 0)
    return ClassRows(surprise, of_target, cross_entropy)


def _share_rows(output: Tensor, shares: Tensor, weight: Tensor | None, label_smoothing: float) -> ClassRows:
    if output.ndim != 2 or output.shape != shares.shape:
        found = f"an output {tuple(output.shape)} and shares {tuple(shares.shape)}"
        raise ValueError(f"{found} do not fit: both are (B, C)")
    _check_weights(weight, output.shape[1])
    surprise = -at_least_float32(output).log_softmax(dim=1)
    of_class = torch.ones_like(surprise) if weight is None else weight.to(surprise.dtype).expand_as(surprise)
    cross_entropy = of_class * surprise
    if label_smoothing > 0:
        spread = label_smoothing / output.shape[1] * cross_entropy.sum(dim=1, keepdim=True)
        cross_entropy = (1 - label_smoothing) * cross_entropy + spread
    return ClassRows(surprise, of_class, cross_entropy, shares)


def _check_weights(weight: Tensor | None, num_classes: int) -> None:
    if weight is not None and weight.shape != (num_classes,):
        raise ValueError(f"{weight.numel()} class weights for an output of {num_classes} classes")


def flatten(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (..., C) and targets (...,) as (B, C) and (B,).

    Raises:
        ValueError: The target is not the output's shape without its last axis.
    """
    if output.ndim == 0 or output.shape[:-1] != target.shape:
        found = f"an output {tuple(output.shape)} and a target {tuple(target.shape)}"
        raise ValueError(f"{found} do not fit: an output (..., C) has a score for each class, its target is (...,)")
    return output.reshape(-1, output.shape[-1]), target.reshape(-1)


def at_least_float32(output: Tensor) -> Tensor:
    """`output` in float32, or as it is where it is float64."""
    return output if output.dtype == torch.float64 else output.float()


def count_targets(target: Tensor, ignore_index: int) -> Tensor:
    """How many entries of `target` are not ignored: int64, shape (), without a host sync."""
    return (target != ignore_index).sum()


def count_rows(target: Tensor, ignore_index: int) -> Tensor:
    """How many targets are not ignored, classes (...,) or rows of shares (B, C): int64, shape ()."""
    if target.is_floating_point():
        return torch.full((), len(target), dtype=torch.int64, device=target.device)
    return count_targets(target, ignore_index)


def check_class_targets(target: Tensor, num_classes: int | None, ignore_index: int) -> None:
    """Raises RowError unless the targets are classes, or shares of them."""
    if target.is_floating_point():
        check_shares(target, num_classes)
    else:
        check_classes(target, num_classes, ignore_index)


def class_weights(weights: Weights, class_counts: Sequence[int] | None) -> Tensor | None:
    """The weights of the C classes, float32 (C,); None for none. They have passed `weight_faults`."""
    if weights is None:
        return None
    if isinstance(weights, str):
        assert class_counts is not None, "checked by weight_faults"
        weights = _inverse(class_counts, weights)
    return torch.tensor(weights, dtype=torch.float32)


def _inverse(counts: Sequence[int], rule: str) -> list[float]:
    raw = [1 / (count if rule == "auto" else effective_number(count)) if count > 0 else 0.0 for count in counts]
    mass = math.fsum(count * weight for count, weight in zip(counts, raw, strict=True))
    return [sum(counts) * weight / mass if weight > 0 else 1.0 for weight in raw]


def effective_number(count: int) -> float:
    """(1 - b ** n) / (1 - b) for n samples, b = 0.999: n where n is small, never above 1000."""
    return math.expm1(count * math.log(_BETA)) / (_BETA - 1)


def num_classes_of(class_counts: Sequence[int] | None, num_outputs: int | None) -> int | None:
    """C, where the running job says it."""
    return num_outputs if class_counts is None else len(class_counts)


def weight_faults(
    name: str, weights: Weights, class_counts: Sequence[int] | None, num_classes: int | None, *, largest: float
) -> list[str]:
    """What is wrong with the weights of the classes.

    Args:
        name: The parameter's name.
        weights: One weight a class, or the rule that makes them of the counts.
        class_counts: Training targets of each class (C entries); None where the task does not count them.
        num_classes: C; None where it is not known.
        largest: The largest weight a user may give.
    """
    if weights is None:
        return []
    if (class_counts if isinstance(weights, str) else num_classes) is None:
        problem = "class weights need a task whose classes are counted"
        return [format_error(name, problem, f"Use {name}=null", value=weights)]
    if isinstance(weights, str):
        rules = ("auto", "effective_number")
        return [] if weights in rules else [format_error(name, f"must be one of {', '.join(rules)}", value=weights)]
    faults = []
    if len(weights) != num_classes:
        faults.append(format_error(name, f"needs one value for each of the {num_classes} classes", value=weights))
    if not all(0 <= weight <= largest and math.isfinite(weight) for weight in weights):
        allowed = "finite and not negative" if math.isinf(largest) else f"between 0 and {largest:g}"
        faults.append(format_error(name, f"every value must be {allowed}", value=weights))
    return faults
