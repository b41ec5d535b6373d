"""What the tasks with one label a sample share: the target, metrics and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.task.answers import class_answers
from trainer.task.classes import Classes

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection


class Label:
    """One of K classes a sample.

    Attributes:
        classes: The labels of the training split.
    """

    role: ClassVar[str] = "label"

    def __init__(self) -> None:
        self.classes = Classes()

    def learn(self, train: Dataset) -> None:
        """Takes the labels and their counts from the column `label` of the training split.

        Raises:
            DataError: There are fewer than two labels.
        """
        batches = train.select_columns(self.role).iter(10_000)
        self.classes.learn((label for batch in batches for label in batch[self.role]), at_least=2)

    def encode(self, labels: Sequence[str]) -> list[int]:
        """The class of each row.

        Raises:
            RowError: Labels were never seen in training.
        """
        return [index for (index,) in self.classes.indices([(label,) for label in labels], self.role)]

    def tell(self, encoded: Mapping[str, Dataset]) -> None:
        """Logs how many samples of each split each class has."""
        self.classes.tell(encoded, self.role)

    @staticmethod
    def target(classes: Sequence[int]) -> Tensor:
        """The target of encoded rows, int64 (B,)."""
        return torch.from_numpy(np.array(classes, dtype=np.int64))

    def info_fields(self) -> dict[str, Any]:
        return {**self.classes.info_fields(), "num_train": sum(self.classes.counts)}

    def metrics(self) -> MetricCollection:
        """Accuracy, and F1 averaged over the classes so that rare ones count as much as frequent ones."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        count = len(self.classes.labels)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(count, average="micro"),
                "macro_f1": MulticlassF1Score(count, average="macro"),
            }
        )

    def predictions(self, output: Tensor, top: int) -> list[dict[str, Any]]:
        """For each row of logits (B, C): the `label` and its `probability`, and the `probabilities` of the best."""
        return class_answers(output, self.classes.labels, top)

    def artifact_files(self) -> dict[str, str]:
        return self.classes.artifact_files()

    def state_dict(self) -> dict[str, Any]:
        return self.classes.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.classes.load_state_dict(state)
