"""Metrics of tagged words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from trainer.task.entities import Scheme, count_entities, read_scheme


class EntityScore(Metric):
    """F1, precision or recall of entities over all types (micro-averaged), as `conlleval` and seqeval give them.

    0 where there is nothing to divide by.

    Args:
        tags: The names of the C classes.
        score: Which of them.
        ignore_index: The target where there is no word to tag.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    counts: Tensor
    types: Tensor
    opens: Tensor
    closes: Tensor

    def __init__(
        self, tags: Sequence[str], score: Literal["f1", "precision", "recall"], ignore_index: int = -100
    ) -> None:
        super().__init__()
        self.score = score
        self.ignore_index = ignore_index
        for name, table in vars(read_scheme(tags)).items():
            self.register_buffer(name, table, persistent=False)
        self.add_state("counts", default=torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Takes scores (B, W, C) and classes (B, W)."""
        scheme = Scheme(self.types, self.opens, self.closes)
        self.counts += count_entities(output.argmax(dim=-1), target, scheme, self.ignore_index)

    def compute(self) -> Tensor:
        found, predicted, there = self.counts.float()
        divisor = {"f1": (predicted + there) / 2, "precision": predicted, "recall": there}[self.score]
        score: Tensor = found / divisor.clamp(min=0.5)
        return score


class TagF1(Metric):
    """F1 of each tag over words, averaged over the tags that are there or predicted.

    Args:
        num_classes: C.
        ignore_index: The target where there is no word to tag.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    counts: Tensor

    def __init__(self, num_classes: int, ignore_index: int = -100) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_state("counts", default=torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Takes scores (..., C) and classes (...,)."""
        target, predicted = target.flatten(), output.argmax(dim=-1).flatten()
        ignored = target == self.ignore_index
        # Ignored words are counted in a class of their own: to leave them out would wait for the device.
        target = target.masked_fill(ignored, self.num_classes)
        predicted = predicted.masked_fill(ignored, self.num_classes)
        right = target.where(target == predicted, self.num_classes)
        self.counts += torch.stack([self._count(classes) for classes in (right, predicted, target)])

    def compute(self) -> Tensor:
        right, predicted, there = self.counts.float()
        scores = right / ((predicted + there) / 2).clamp(min=0.5)
        mean: Tensor = scores.sum() / ((predicted + there) > 0).sum().clamp(min=1)
        return mean

    def _count(self, classes: Tensor) -> Tensor:
        # Not bincount: it waits for the device to learn the largest class.
        counts = torch.zeros(self.num_classes + 1, dtype=torch.int64, device=classes.device)
        return counts.index_add(0, classes, torch.ones_like(classes))[:-1]
