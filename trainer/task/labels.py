"""Any number of labels a sample: the target, metrics and answers."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.errors import ConfigError, format_error
from trainer.task.answers import rounded
from trainer.task.classes import Classes
from trainer.task.texts import row_lengths

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

logger = logging.getLogger(__name__)


class Labels:
    """Those of C labels that hold for a sample: none, one or several.

    Args:
        threshold: A label is predicted where its probability is above it, in (0, 1); for F1 and exact match, too.

    Attributes:
        classes: The labels of the training split.
        num_train: Training samples.

    Raises:
        ConfigError: The threshold is out of range.
    """

    role: ClassVar[str] = "labels"

    def __init__(self, threshold: float) -> None:
        if not 0 < threshold < 1:
            raise ConfigError(format_error("threshold", "must be above 0 and below 1", value=threshold))
        self.threshold = threshold
        self.classes = Classes()
        self.num_train = 0

    def learn(self, train: Dataset) -> None:
        """Takes the labels and their positives from the column `labels` of the training split.

        Raises:
            DataError: There are fewer than two labels.
        """
        rows = (labels for batch in train.select_columns(self.role).iter(10_000) for labels in batch[self.role])
        self.classes.learn((label for labels in rows for label in set(labels)), at_least=2, role=self.role)
        self.num_train = len(train)

    def encode(self, rows: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """The classes of each row, ascending, int32.

        Raises:
            RowError: Labels were never seen in training.
        """
        return [np.array(sorted(set(row)), dtype=np.int32) for row in self.classes.indices(rows, self.role)]

    def tell(self, encoded: Mapping[str, Dataset]) -> None:
        """Logs how many labels the samples of each split have, and how many samples each label."""
        for split, rows in encoded.items():
            counts = row_lengths(rows, self.role)
            told = "%s: %d labels, %.2f a text, %.1f %% of texts without any"
            logger.info(told, split, len(self.classes.labels), counts.mean(), 100 * (counts == 0).mean())
        self.classes.tell(encoded, self.role)

    def target(self, rows: Sequence[np.ndarray]) -> Tensor:
        """The target of encoded rows, 0 or 1, float32 (B, C)."""
        target = np.zeros((len(rows), len(self.classes.labels)), dtype=np.float32)
        for row, indices in enumerate(rows):
            target[row, indices] = 1.0
        return torch.from_numpy(target)

    def info_fields(self) -> dict[str, Any]:
        """`class_counts` are the positives of each label in training."""
        return {**self.classes.info_fields(), "num_train": self.num_train}

    def metrics(self) -> MetricCollection:
        """Micro and macro F1 and the share of exact matches at `threshold`, and the mean average precision."""
        from trainer.task.multilabel_metric import multilabel_metrics

        return multilabel_metrics(len(self.classes.labels), self.threshold)

    def predictions(self, output: Tensor, top: int) -> list[dict[str, Any]]:
        """For each row of logits (B, C) the `labels` above `threshold`, the likeliest first, and `probabilities`.

        Those are of these labels, and of the `top` likeliest where they are more.
        """
        probabilities, order = output.float().sigmoid().sort(dim=-1, descending=True, stable=True)
        counts = (probabilities > self.threshold).sum(dim=-1).tolist()
        answers: list[dict[str, Any]] = []
        for values, indices, count in zip(probabilities.tolist(), order.tolist(), counts, strict=True):
            shown = [self.classes.labels[index] for index in indices[: max(count, top)]]
            found = dict(zip(shown, map(rounded, values), strict=False))
            answers.append({"labels": shown[:count], "probabilities": found})
        return answers

    def artifact_files(self) -> dict[str, str]:
        """`labels.json`, and `threshold.json`: a label is predicted where sigmoid(logit) is above it."""
        return {**self.classes.artifact_files(), "threshold.json": json.dumps(self.threshold) + "\n"}

    def state_dict(self) -> dict[str, Any]:
        return {**self.classes.state_dict(), "num_train": self.num_train}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.classes.load_state_dict(state)
        self.num_train = int(state["num_train"])
