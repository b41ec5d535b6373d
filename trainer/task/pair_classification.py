"""One label for two texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trainer.errors import ConfigError, format_error
from trainer.protocols import Columns, Inputs, Target, TaskInfo
from trainer.task.label import Label
from trainer.task.pairs import encode_pairs
from trainer.task.supervised import Supervised
from trainer.task.texts import Texts
from trainer.task.tokenization import unknown_id

if TYPE_CHECKING:
    from torch import Tensor


class PairClassification(Supervised):
    """Two texts in, one of K classes out: whether the one answers, follows from or means the same as the other.

    Both are one sequence, `[CLS] text [SEP] text_pair [SEP]` or as a given tokenizer frames pairs, with token types
    that tell them apart where the tokenizer has such. Of a sequence that is too long the longer text is cut, so that
    the second one is not lost behind a long first one.

    Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805.

    Args:
        max_length: Tokens of both texts, special ones included.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a name on the hub; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.

    Raises:
        ConfigError: A value is out of range, or there is no such tokenizer.
    """

    monitor = "accuracy"
    monitors = ("accuracy", "macro_f1")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("pairs", "classes")

    def __init__(self, *, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool) -> None:
        if max_length < 5:
            problem = "must be at least 5, three of them special tokens"
            raise ConfigError(format_error("max_length", problem, value=max_length))
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.label = Label()
        super().__init__("pair_classification/1", ("text", "text_pair"), self.texts, self.label)

    @property
    def num_token_types(self) -> int:
        """2 where the tokenizer tells the texts of a pair apart by token types, 1 where it does not."""
        return max(self.texts.tokenizer.encode("a", "b").type_ids) + 1

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `input_ids`, `token_type_ids` where there are two types, `truncated`, `unknown`."""
        tokenizer = self.texts.tokenizer
        unknown = unknown_id(tokenizer)
        encoded = encode_pairs(tokenizer, rows["text"], rows["text_pair"], self.texts.max_length)
        columns: dict[str, list[Any]] = {
            "input_ids": [ids for ids, _, _ in encoded],
            "truncated": [truncated for _, _, truncated in encoded],
            "unknown": [0 if unknown is None else int((ids == unknown).sum()) for ids, _, _ in encoded],
        }
        if self.num_token_types > 1:
            columns["token_type_ids"] = [types for _, types, _ in encoded]
        return columns

    def info(self) -> TaskInfo:
        return replace(super().info(), num_token_types=self.num_token_types)

    def axes(self) -> dict[str, dict[int, str]]:
        return self.texts.axes(*["token_type_ids"] * (self.num_token_types > 1))

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Random token ids, padded; where there are two token types, the second begins anywhere in a sample."""
        inputs = self.texts.example(sizes, generator)
        if self.num_token_types > 1:
            begins = torch.from_numpy(generator.integers(sizes["sequence"], size=(sizes["batch"], 1), endpoint=True))
            second = torch.arange(sizes["sequence"]) >= begins
            inputs["token_type_ids"] = second.long() * inputs["attention_mask"]
        return inputs
