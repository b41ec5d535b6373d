"""The base of causal and masked language modeling: the vocabulary as classes, and what the two tasks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import ConfigError, format_error
from trainer.protocols import StateDict, TaskInfo
from trainer.task.class_targets import most_likely
from trainer.task.supervised import fingerprint
from trainer.task.texts import Texts, TextTask
from trainer.task.tokenization import find_special_id

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from torch import Tensor
    from torchmetrics import MetricCollection


class LanguageModeling(TextTask):
    """The methods of `Task` that causal and masked language modeling share.

    Args:
        version: The task's name with the version of its encoding, for the fingerprint.
        texts: Encodes the texts.

    Attributes:
        token_counts: How often each token occurs in training, without the special tokens that frame a text.
    """

    def __init__(self, version: str, texts: Texts) -> None:
        self._version = version
        self.texts = texts
        self.token_counts: list[int] = []

    def columns(self) -> tuple[str, ...]:
        return ("text",)

    def input_columns(self) -> tuple[str, ...]:
        return ("text",)

    def fingerprint(self) -> str:
        return fingerprint(self._version, *self.texts.fingerprint_parts())

    def fit(self, train: Dataset) -> None:
        """Train the vocabulary on the column `text` of the training split, and count its tokens there."""
        self.texts.fit(train, ("text",))
        counts = np.zeros(self.texts.tokenizer.get_vocab_size(), dtype=np.int64)
        for batch in train.select_columns("text").iter(1_000):
            for encoding in self.texts.tokenizer.encode_batch(batch["text"], add_special_tokens=False):
                np.add.at(counts, encoding.ids, 1)
        self.token_counts = counts.tolist()

    def info(self) -> TaskInfo:
        fields = self.texts.info_fields()
        return TaskInfo(
            **fields,
            num_outputs=fields["vocab_size"],
            output_level="token",
            class_counts=self.token_counts,
            num_train=sum(self.token_counts),
        )

    def metrics(self) -> MetricCollection:
        """Return perplexity and accuracy over the tokens that have a target."""
        from trainer.task.classification_metrics import language_metrics

        return language_metrics()

    def state_dict(self) -> StateDict:
        return {**self.texts.state_dict(), "token_counts": self.token_counts}

    def load_state_dict(self, state: StateDict) -> None:
        self.texts.load_state_dict(state)
        self.token_counts = list(state["token_counts"])


def require_special_token(texts: Texts, names: Sequence[str], noun: str) -> None:
    """Check that a tokenizer named by the user has one of these tokens; a trained vocabulary always has one.

    Raises:
        ConfigError: The tokenizer has none of them.
    """
    if texts.user_tokenizer is not None and find_special_id(texts.user_tokenizer, names) is None:
        problem = f"has no {noun} ({', '.join(names)})"
        raise ConfigError(format_error("tokenizer", problem, "Name another one, or use null to train a vocabulary"))


def most_likely_tokens(output: Tensor, tokenizer: Tokenizer, count: int) -> list[list[tuple[str, float]]]:
    """Return the `count` most likely tokens of each row of logits (W, V), as the vocabulary spells them.

    Each comes with its probability.
    """
    return [
        [(tokenizer.id_to_token(token_id) or str(token_id), probability) for token_id, probability in best]
        for best in most_likely(output, count)
    ]
