"""Any number of labels for one text."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.errors import ConfigError, explain
from trainer.protocols import Batch, Batching, Columns, Inputs, Target
from trainer.task.answers import rounded
from trainer.task.classes import Classes
from trainer.task.fingerprint import fingerprint
from trainer.task.texts import Texts

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.draws import Draws

logger = logging.getLogger(__name__)


class MultilabelClassification:
    """Text in, those of C labels out that hold for it: none, one or several.

    The monitor is the micro F1, as in the literature on many labels: one over labels with a handful of positives in
    the validation split moves with each of them.

    Args:
        max_length: Tokens of a sample, special ones included; longer texts are cut.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a name on the hub; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.
        threshold: A label is predicted where its probability is above it, in (0, 1); for F1 and exact match, too.

    Raises:
        ConfigError: A value is out of range, or there is no such tokenizer.
    """

    monitor = "micro_f1"
    target: Target = "multi_hot"
    inputs: Inputs = "tokens"
    script = ("texts", "labels")

    def __init__(
        self, *, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool, threshold: float
    ) -> None:
        if not 0 < threshold < 1:
            raise ConfigError(explain("threshold", "must be above 0 and below 1", value=threshold))
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.classes = Classes()
        self.threshold = threshold
        self._num_train = 0

    def columns(self) -> tuple[str, ...]:
        return ("text", "labels")

    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def fingerprint(self) -> str:
        return fingerprint("multilabel_classification/1", *self.texts.key())

    def fit(self, train: Dataset) -> None:
        """Takes the labels and their positives from the training split, and learns the vocabulary from its texts.

        Raises:
            DataError: There are fewer than two labels.
        """
        rows = (labels for batch in train.select_columns("labels").iter(10_000) for labels in batch["labels"])
        self.classes.learn((label for labels in rows for label in set(labels)), at_least=2, role="labels")
        self._num_train = len(train)
        self.texts.learn(batch["text"] for batch in train.select_columns("text").iter(1_000))

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `input_ids`, `labels` (indices, ascending), `truncated`, `unknown` (tokens outside the vocabulary).

        Raises:
            RowError: A label was never seen in training.
        """
        indices = [
            np.array(sorted({self.classes.index(label, position, "labels") for label in labels}), dtype=np.int32)
            for position, labels in enumerate(rows["labels"])
        ]
        return {**self.encode_inputs(rows), "labels": indices}

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        return self.texts.encode(rows["text"])

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        """Logs, beside what holds for all texts, how many labels those of each split have, and how many each label."""
        for split, rows in encoded.items():
            counts = self.texts.lengths(rows, "labels")
            told = "%s: %d labels, %.2f a text, %.1f %% of texts without any"
            logger.info(told, split, len(self.classes.labels), counts.mean(), 100 * (counts == 0).mean())
        self.classes.tell(encoded, "labels")
        return self.texts.check(encoded)

    def lengths(self, encoded: Dataset) -> np.ndarray:
        return self.texts.lengths(encoded)

    def collate(self, rows: Columns, draws: Draws, batching: Batching) -> Batch:
        target = np.zeros((len(rows["labels"]), len(self.classes.labels)), dtype=np.float32)
        for row, indices in enumerate(rows["labels"]):
            target[row, indices] = 1.0
        return Batch(self.inputs_of(rows, batching), torch.from_numpy(target), len(target), tuple(draws.ids))

    def inputs_of(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        return self.texts.pooled_inputs(encoded, batching)

    def facts(self) -> dict[str, Any]:
        """`class_counts` are the positives of each label in training."""
        return {**self.texts.facts(), **self.classes.facts(), "num_train": self._num_train}

    def metrics(self) -> MetricCollection:
        """Micro and macro F1 and the share of exact matches at `threshold`, and the mean average precision."""
        from trainer.task.multilabel_metric import multilabel_metrics

        return multilabel_metrics(len(self.classes.labels), self.threshold)

    def answers(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        """For each row of logits (B, C): the `labels` above `threshold`, the likeliest first, and `probabilities`:

        of those labels, and of the `top` likeliest where they are more.
        """
        probabilities, order = output.float().sigmoid().sort(dim=-1, descending=True, stable=True)
        counts = (probabilities > self.threshold).sum(dim=-1).tolist()
        answers: list[dict[str, Any]] = []
        for values, indices, count in zip(probabilities.tolist(), order.tolist(), counts, strict=True):
            shown = [self.classes.labels[index] for index in indices[: max(count, top)]]
            found = dict(zip(shown, map(rounded, values), strict=False))
            answers.append({"labels": shown[:count], "probabilities": found})
        return answers

    def axes(self) -> dict[str, dict[int, str]]:
        return self.texts.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.texts.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self.texts.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        """`labels.json`, the tokenizer, and `threshold.json`: a label is predicted where sigmoid(logit) is above it."""
        files = {**self.classes.artifact_files(), **self.texts.artifact_files()}
        return {**files, "threshold.json": json.dumps(self.threshold) + "\n"}

    def state_dict(self) -> dict[str, Any]:
        return {**self.classes.state_dict(), "num_train": self._num_train, **self.texts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.classes.load_state_dict(state)
        self._num_train = int(state["num_train"])
        self.texts.load_state_dict(state)
