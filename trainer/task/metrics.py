"""Metrics and predictions that several tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor
    from torchmetrics import MetricCollection


def class_metrics(num_classes: int) -> MetricCollection:
    """Accuracy, and F1 averaged over the classes so that rare ones count as much as frequent ones."""
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(num_classes, average="micro"),
            "macro_f1": MulticlassF1Score(num_classes, average="macro"),
        }
    )


def class_predictions(output: Tensor, labels: Sequence[str]) -> list[dict[str, Any]]:
    """For each row of logits (B, C): the label and its probability."""
    probabilities, classes = output.float().softmax(dim=-1).max(dim=-1)
    return [
        {"label": labels[number], "probability": probability}
        for number, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
    ]
