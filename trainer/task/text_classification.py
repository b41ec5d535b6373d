"""One label for one text."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.errors import ConfigError, DataError, RowError, explain, nearest
from trainer.protocols import Batch, Batching, Columns
from trainer.task.packing import padded_inputs, text_inputs
from trainer.task.tokenization import learn_wordpiece, load_tokenizer, pad_id, unknown_id

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.draws import Draws

logger = logging.getLogger(__name__)

_MANY_UNKNOWN = 0.05
_MANY_TRUNCATED = 0.2
"""Above these shares of tokens and of texts, a run starts with a warning."""


class TextClassification:
    """Text in, one of K classes out.

    Args:
        max_length: Tokens of a sample, special ones included; longer texts are cut.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json`; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.
    """

    monitor = "accuracy"

    def __init__(self, *, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool) -> None:
        if max_length < 3:
            raise ConfigError(explain("max_length", "must be at least 3, two of them special tokens", value=max_length))
        if vocab_size < 100:
            raise ConfigError(explain("vocab_size", "must be at least 100", value=vocab_size))
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.lowercase = lowercase
        self._given = None if tokenizer is None else load_tokenizer(tokenizer)
        self._tokenizer: Tokenizer | None = None
        self.labels: list[str] = []
        self.class_counts: list[int] = []

    def columns(self) -> tuple[str, ...]:
        return ("text", "label")

    def fingerprint(self) -> str:
        given = self._given and self._given.to_str()
        parts = ("text_classification/1", self.max_length, self.vocab_size, self.lowercase, given)
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def fit(self, train: Dataset) -> None:
        """Takes the labels and their counts from the training split, and learns the vocabulary from its texts.

        Raises:
            DataError: There are fewer than two labels.
        """
        counts = Counter(label for batch in train.select_columns("label").iter(10_000) for label in batch["label"])
        if len(counts) < 2:
            raise DataError(explain("label", "needs at least two different labels in training", value=list(counts)))
        self.labels = sorted(counts)
        self.class_counts = [counts[label] for label in self.labels]
        self._tokenizer = self._given or learn_wordpiece(
            (batch["text"] for batch in train.select_columns("text").iter(1_000)),
            vocab_size=self.vocab_size,
            lowercase=self.lowercase,
        )
        self._tokenizer.enable_truncation(self.max_length)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, truncating at `max_length`; there is one after `fit` or `load_state_dict`."""
        assert self._tokenizer is not None, "neither fitted nor loaded"
        return self._tokenizer

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `input_ids`, `label` (index), `truncated`, `unknown` (tokens outside the vocabulary).

        Raises:
            RowError: A label was never seen in training.
        """
        index = {label: number for number, label in enumerate(self.labels)}
        for position, label in enumerate(rows["label"]):
            if label not in index:
                raise RowError(
                    position,
                    "label",
                    explain("label", "was never seen in training", nearest(label, self.labels), value=label),
                )
        encodings = self.tokenizer.encode_batch(list(rows["text"]))
        unknown = unknown_id(self.tokenizer)
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return {
            "input_ids": ids,
            "label": [index[label] for label in rows["label"]],
            "truncated": [bool(encoding.overflowing) for encoding in encodings],
            "unknown": [0 if unknown is None else int((row == unknown).sum()) for row in ids],
        }

    def check(self, encoded: Mapping[str, Dataset]) -> None:
        """Logs the shares of unknown tokens and truncated texts of each split, as a warning where they are high."""
        for split, rows in encoded.items():
            columns = rows.with_format("numpy")
            unknown = columns["unknown"][:].sum() / max(1, self.lengths(rows).sum())
            truncated = columns["truncated"][:].mean()
            high = [
                remedy
                for share, limit, remedy in (
                    (unknown, _MANY_UNKNOWN, "give a task.tokenizer that knows these texts, or raise task.vocab_size"),
                    (truncated, _MANY_TRUNCATED, "raise task.max_length"),
                )
                if share > limit
            ]
            logger.log(
                logging.WARNING if high else logging.INFO,
                "%s: %d texts, %.1f %% of tokens unknown, %.1f %% of texts truncated at %d tokens%s",
                *(split, len(rows), 100 * unknown, 100 * truncated, self.max_length),
                "".join(f"; {remedy}" for remedy in high),
            )

    def lengths(self, encoded: Dataset) -> np.ndarray:
        column = encoded.with_format("arrow").select_columns("input_ids")
        return np.concatenate([batch["input_ids"].combine_chunks().value_lengths() for batch in column.iter(10_000)])

    def collate(self, rows: Columns, draws: Draws, batching: Batching) -> Batch:
        inputs = text_inputs(
            rows["input_ids"], pad_id=pad_id(self.tokenizer), max_length=self.max_length, batching=batching
        )
        target = torch.from_numpy(np.array(rows["label"], dtype=np.int64))
        return Batch(inputs, target, len(target), tuple(draws.ids))

    def facts(self) -> dict[str, Any]:
        return {
            "vocab_size": self.tokenizer.get_vocab_size(),
            "num_outputs": len(self.labels),
            "max_length": self.max_length,
            "class_counts": self.class_counts,
        }

    def metrics(self) -> MetricCollection:
        """Accuracy, and F1 averaged over the classes so that rare ones count as much as frequent ones."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

        classes = len(self.labels)
        return MetricCollection(
            {
                "accuracy": MulticlassAccuracy(classes, average="micro"),
                "macro_f1": MulticlassF1Score(classes, average="macro"),
            }
        )

    def predictions(self, output: Tensor) -> list[dict[str, Any]]:
        """For each row of logits (B, C): the label and its probability."""
        probabilities, classes = output.float().softmax(dim=-1).max(dim=-1)
        return [
            {"label": self.labels[number], "probability": probability}
            for number, probability in zip(classes.tolist(), probabilities.tolist(), strict=True)
        ]

    def axes(self) -> dict[str, dict[int, str]]:
        return {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return {"sequence": (1, self.max_length)}

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Random token ids; the first sample fills the row, the others have random lengths."""
        batch, width = sizes["batch"], sizes["sequence"]
        lengths = [width, *generator.integers(1, width, size=batch - 1, endpoint=True)]
        samples = [generator.integers(self.tokenizer.get_vocab_size(), size=length) for length in lengths]
        return padded_inputs(samples, pad_id=pad_id(self.tokenizer), width=width)

    def artifact_files(self) -> dict[str, str]:
        return {
            "labels.json": json.dumps(self.labels, ensure_ascii=False, indent=1) + "\n",
            "tokenizer.json": self.tokenizer.to_str(pretty=True) + "\n",
        }

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels, "class_counts": self.class_counts, "tokenizer": self.tokenizer.to_str()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.labels = list(state["labels"])
        self.class_counts = list(state["class_counts"])
        self._tokenizer = Tokenizer.from_str(state["tokenizer"])
        self._tokenizer.enable_truncation(self.max_length)
