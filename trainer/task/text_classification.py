"""One label for one text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.protocols import Batch, Batching, Columns, Inputs, Target
from trainer.task.fingerprint import fingerprint
from trainer.task.label import Label
from trainer.task.texts import Texts

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.draws import Draws


class TextClassification:
    """Text in, one of K classes out.

    Args:
        max_length: Tokens of a sample, special ones included; longer texts are cut.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a name on the hub; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.
    """

    monitor = "accuracy"
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("texts", "classes")

    def __init__(self, *, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.label = Label()

    def columns(self) -> tuple[str, ...]:
        return ("text", "label")

    def reads(self) -> tuple[str, ...]:
        return ("text",)

    def fingerprint(self) -> str:
        return fingerprint("text_classification/1", *self.texts.key())

    def fit(self, train: Dataset) -> None:
        """Takes the labels and their counts from the training split, and learns the vocabulary from its texts.

        Raises:
            DataError: There are fewer than two labels.
        """
        self.label.learn(train)
        self.texts.learn(batch["text"] for batch in train.select_columns("text").iter(1_000))

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `input_ids`, `label` (class), `truncated`, `unknown` (tokens outside the vocabulary).

        Raises:
            RowError: A label was never seen in training.
        """
        return {**self.encode_inputs(rows), "label": self.label.encode(rows["label"])}

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        return self.texts.encode(rows["text"])

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        self.label.tell(encoded)
        return self.texts.check(encoded)

    def lengths(self, encoded: Dataset) -> np.ndarray:
        return self.texts.lengths(encoded)

    def collate(self, rows: Columns, draws: Draws, batching: Batching) -> Batch:
        target = self.label.target(rows["label"])
        return Batch(self.inputs_of(rows, batching), target, len(target), tuple(draws.ids))

    def inputs_of(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        return self.texts.pooled_inputs(encoded, batching)

    def facts(self) -> dict[str, Any]:
        return {**self.texts.facts(), **self.label.facts()}

    def metrics(self) -> MetricCollection:
        return self.label.metrics()

    def answers(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        return self.label.answers(output, top)

    def axes(self) -> dict[str, dict[int, str]]:
        return self.texts.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.texts.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self.texts.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        return {**self.label.artifact_files(), **self.texts.artifact_files()}

    def state_dict(self) -> dict[str, Any]:
        return {**self.label.state_dict(), **self.texts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.label.load_state_dict(state)
        self.texts.load_state_dict(state)
