"""What the language models share: the vocabulary as classes, special tokens, metrics, answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import ConfigError, format_error
from trainer.task.answers import likeliest
from trainer.task.texts import Texts
from trainer.task.tokenization import unknown_id

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from torch import Tensor
    from torchmetrics import MetricCollection


class Vocabulary:
    """The tokens of texts as the classes that a language model tells apart.

    Args:
        texts: What reads the texts.

    Attributes:
        counts: How often each token occurs in training, special ones that frame a text left out.
    """

    def __init__(self, texts: Texts) -> None:
        self.texts = texts
        self.counts: list[int] = []

    def learn(self, train: Dataset) -> None:
        """Learns the vocabulary from the column `text` of the training split, and counts its tokens there."""
        self.texts.learn(train, ("text",))
        counts = np.zeros(self.texts.tokenizer.get_vocab_size(), dtype=np.int64)
        for batch in train.select_columns("text").iter(1_000):
            for encoding in self.texts.tokenizer.encode_batch(batch["text"], add_special_tokens=False):
                np.add.at(counts, encoding.ids, 1)
        self.counts = counts.tolist()

    def info_fields(self) -> dict[str, Any]:
        fields = self.texts.info_fields()
        return {
            **fields,
            "num_outputs": fields["vocab_size"],
            "output_level": "token",
            "class_counts": self.counts,
            "num_train": sum(self.counts),
        }

    def state_dict(self) -> dict[str, Any]:
        return {**self.texts.state_dict(), "token_counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.texts.load_state_dict(state)
        self.counts = list(state["token_counts"])


def special_id(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """The id of the first of `names` that the tokenizer has."""
    ids = (tokenizer.token_to_id(name) for name in names)
    return next((number for number in ids if number is not None), None)


def need_special(texts: Texts, names: Sequence[str], what: str) -> None:
    """Refuses a given tokenizer without any of the tokens `names`; a learnt vocabulary has one of them.

    Raises:
        ConfigError: It has none.
    """
    if texts.given is not None and special_id(texts.given, names) is None:
        problem = f"has no {what} ({', '.join(names)})"
        raise ConfigError(format_error("tokenizer", problem, "Give another one, or null to learn a vocabulary"))


def special_ids(tokenizer: Tokenizer) -> np.ndarray:
    """The ids that stand for no text, int64, rising: special tokens, and the one for what is unknown."""
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    unknown = unknown_id(tokenizer)
    return np.array(sorted(special if unknown is None else special | {unknown}), dtype=np.int64)


def language_metrics() -> MetricCollection:
    """Perplexity and accuracy over the tokens that have a target."""
    from torchmetrics import MetricCollection

    from trainer.task.token_metric import Perplexity, TokenAccuracy

    return MetricCollection({"perplexity": Perplexity(), "accuracy": TokenAccuracy()})


def likeliest_tokens(output: Tensor, tokenizer: Tokenizer, count: int) -> list[list[tuple[str, float]]]:
    """The `count` likeliest tokens of each row of logits (W, V), as the vocabulary spells them, and probabilities."""
    return [
        [(tokenizer.id_to_token(number) or str(number), probability) for number, probability in best]
        for best in likeliest(output, count)
    ]
