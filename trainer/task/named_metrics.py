"""Metrics that a job may add to its task's metrics, by name or as classes of the user."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from trainer.task.class_scores import CLASS_SCORES, LABEL_SCORES
from trainer.task.classification_metrics import (
    ClassCounts,
    LabelCounts,
    Prepare,
    PreparedMetric,
    RankingScore,
    TokenAccuracy,
    average_precisions,
    decide_labels,
    prepare_decisions,
    roc_areas,
)
from trainer.task.regression_metrics import Error, Score

FITS = {
    "auroc": ("class", "multi_hot"),
    "average_precision": ("class", "multi_hot"),
    "balanced_accuracy": ("class", "tags"),
    "cohen_kappa": ("class", "tags"),
    "macro_precision": ("class", "tags", "multi_hot"),
    "macro_recall": ("class", "tags", "multi_hot"),
    "mcc": ("class", "tags", "multi_hot"),
    "micro_precision": ("multi_hot",),
    "micro_recall": ("multi_hot",),
    "top_K_accuracy": ("class", "tags", "tokens"),
    "weighted_f1": ("class", "tags", "multi_hot"),
    "weighted_precision": ("multi_hot",),
    "weighted_recall": ("multi_hot",),
    "explained_variance": ("values",),
    "mape": ("values",),
    "max_error": ("values",),
    "median_absolute_error": ("values",),
}
"""The kinds of task that each named metric fits; it is read from the source before torch is loaded.

A kind is the `Target` of a task, or for classes of tokens `tags` or, in language modeling, `tokens`. K is a number.
"""


def prepare_classes(output: Tensor, target: Tensor, ignore_index: int = -100) -> tuple[Tensor, Tensor]:
    """Turn scores (..., C) and classes (...,) into probabilities (N, C) and classes (N,) without ignored targets."""
    scores, classes = output.flatten(0, -2), target.flatten()
    kept = classes != ignore_index
    return scores[kept].float().softmax(dim=-1), classes[kept]


def prepare_labels(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits and labels of 0 and 1, both (B, C), into probabilities and integers."""
    return output.float().sigmoid(), target.int()


def build_named_metric(
    name: str, kind: str, num_outputs: int, prepare: Prepare, decide: Callable[[Tensor], Tensor] | None = None
) -> Metric:
    """Return a metric of `FITS` for a task of a kind that it fits.

    With two classes, `auroc` and `average_precision` take the second class for the positive one; with more they are
    means over the classes, each against all others.

    Args:
        name: The name, with a number in place of K.
        kind: The kind of the task.
        num_outputs: C.
        prepare: Prepares the task's outputs and targets: probabilities and classes or labels, or values.
        decide: Turns outputs into decisions by the rule of the task, see `HasDecisionRule`; None for the most likely
            class, or the labels that are more likely than not.
    """
    if match := re.fullmatch(r"top_(\d+)_accuracy", name):
        return PreparedMetric(TokenAccuracy(k=int(match[1])), _unchanged)
    if name in _RANKING:
        ranked = partial(_prepare_ranking, prepare) if kind == "class" else prepare
        return PreparedMetric(RankingScore(_RANKING[name]), ranked)
    if kind == "multi_hot":
        counts = LabelCounts(num_outputs, partial(_of_counts, LABEL_SCORES[name]))
        return PreparedMetric(counts, partial(prepare_decisions, decide or partial(decide_labels, threshold=0.5)))
    if name in CLASS_SCORES:
        decided = partial(prepare_decisions, decide) if decide else _unchanged
        return PreparedMetric(ClassCounts(num_outputs, partial(_of_counts, CLASS_SCORES[name])), decided)
    made = Score if name == "explained_variance" else Error
    return PreparedMetric(made(_VALUES[name], [1.0] * num_outputs), prepare)


def _of_counts(score: Callable[..., np.ndarray], *counts: Tensor) -> Tensor:
    return torch.as_tensor(score(*(each.cpu().double().numpy() for each in counts)))


def _unchanged(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    return output, target


def _prepare_ranking(prepare: Prepare, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of each class and whether it is the target, (N, C); of two classes, only the second."""
    probabilities, classes = prepare(output, target)
    one_hot = F.one_hot(classes, probabilities.shape[1])
    return (probabilities[:, 1:], one_hot[:, 1:]) if probabilities.shape[1] == 2 else (probabilities, one_hot)


# Statistics of values (N, V) in the user's units


def explained_variance(output: Tensor, target: Tensor) -> Tensor:
    """1 - variance(target - output) / variance(target), (N, V) to (V,); if the targets are equal 1 or 0, as `r2`."""
    residual, total = ((each - each.mean(0)).square().sum(0) for each in (target - output, target))
    constant = target.amin(0) == target.amax(0)
    return torch.where(constant, (residual == 0).double(), 1 - residual / total)


def mape(output: Tensor, target: Tensor) -> Tensor:
    """mean(|output - target| / |target|), (N, V) to (V,); as in scikit-learn, a target of 0 counts as 2.2e-16."""
    return ((output - target).abs() / target.abs().clamp(min=torch.finfo(torch.float64).eps)).mean(0)


def max_error(output: Tensor, target: Tensor) -> Tensor:
    """max(|output - target|), (N, V) to (V,)."""
    return (output - target).abs().amax(0)


def median_absolute_error(output: Tensor, target: Tensor) -> Tensor:
    """median(|output - target|), (N, V) to (V,), the mean of the middle two of an even number."""
    ordered = (output - target).abs().sort(dim=0).values
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


_RANKING = {"auroc": roc_areas, "average_precision": average_precisions}
_VALUES = {
    "explained_variance": explained_variance,
    "mape": mape,
    "max_error": max_error,
    "median_absolute_error": median_absolute_error,
}
