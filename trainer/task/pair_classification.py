"""Classify pairs of texts: one class per pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import numpy as np
import torch
from annotated_types import Ge

from trainer.constraints import HubPath, Note, validated
from trainer.protocols import Columns, EncodedColumns, Inputs, Target, TaskInfo
from trainer.task.class_targets import ClassTarget
from trainer.task.supervised import SupervisedTask
from trainer.task.texts import Texts, VocabSize

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor


class PairClassification(SupervisedTask):
    """Predict one of K classes for two texts, such as whether one answers, follows from or means the same as the other.

    Both texts form one sequence, `[CLS] text [SEP] text_pair [SEP]` or as a pretrained tokenizer frames pairs, with
    token types to tell them apart if the tokenizer has them. If a sequence is too long, the longer text is truncated,
    so that the second text is not lost after a long first one.

    Source: Devlin et al. 2019, https://arxiv.org/abs/1810.04805.

    Args:
        max_length: Tokens of both texts, special tokens included.
        vocab_size: Entries of a vocabulary trained on the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.
    """

    monitor = "accuracy"
    monitors = ("accuracy", "macro_f1")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("pairs", "classes")

    @validated()
    def __init__(
        self,
        *,
        max_length: Annotated[int, Ge(5), Note("three are special tokens")],
        vocab_size: VocabSize,
        tokenizer: HubPath | None,
        lowercase: bool,
    ) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.class_target = ClassTarget()
        super().__init__("pair_classification/1", ("text", "text_pair"), self.texts, self.class_target)

    @property
    def num_token_types(self) -> int:
        """2 if the tokenizer tells the texts of a pair apart by token types, else 1."""
        return max(self.texts.tokenizer.encode("a", "b").type_ids) + 1

    def encode_inputs(self, rows: Columns) -> EncodedColumns:
        """Return the columns `input_ids`, `truncated`, `unknown`, and `token_type_ids` if there are two types."""
        encoded = encode_pairs(self.texts.tokenizer, rows["text"], rows["text_pair"], self.texts.max_length)
        columns: EncodedColumns = {
            "input_ids": [ids for ids, _, _ in encoded],
            "truncated": [truncated for _, _, truncated in encoded],
            "unknown": self.texts.count_unknown([ids for ids, _, _ in encoded]),
        }
        if self.num_token_types > 1:
            columns["token_type_ids"] = [types for _, types, _ in encoded]
        return columns

    def info(self) -> TaskInfo:
        return replace(super().info(), num_token_types=self.num_token_types)

    def axes(self) -> dict[str, dict[int, str]]:
        return self.texts.axes(*["token_type_ids"] * (self.num_token_types > 1))

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Return padded random ids; with two token types, the second text begins anywhere in a sample."""
        inputs = self.texts.example(sizes, generator)
        if self.num_token_types > 1:
            begins = torch.from_numpy(generator.integers(sizes["sequence"], size=(sizes["batch"], 1), endpoint=True))
            second = torch.arange(sizes["sequence"]) >= begins
            inputs["token_type_ids"] = second.long() * inputs["attention_mask"]
        return inputs


def encode_pairs(
    tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str], max_length: int
) -> list[tuple[np.ndarray, np.ndarray, bool]]:
    """Encode pairs as the tokenizer frames them, truncated in linear time.

    The result equals the tokenizer's own truncation, "longest_first", which also makes every combination of the tokens
    that it cuts off either text: two texts of 1,000 tokens cut to 9 take it seconds, and of 3,000 tokens minutes.

    Returns:
        For each pair the ids (T,), the token types (T,), and True if tokens were cut off.
    """
    truncation = tokenizer.truncation
    tokenizer.no_truncation()
    try:
        encodings = tokenizer.encode_batch(list(zip(texts, pairs, strict=True)))
    finally:
        if truncation is not None:
            tokenizer.enable_truncation(**truncation)
    return [_truncate(encoding, max_length) for encoding in encodings]


def _truncate(encoding: Encoding, max_length: int) -> tuple[np.ndarray, np.ndarray, bool]:
    """Drop the last tokens of the longer text, then of both texts in turn; special tokens stay."""
    ids, types = np.array(encoding.ids, dtype=np.int32), np.array(encoding.type_ids, dtype=np.int8)
    if len(ids) <= max_length:
        return ids, types, False
    text_of = np.array([-1 if text is None else text for text in encoding.sequence_ids])
    keep = text_of < 0
    counts = [int((text_of == text).sum()) for text in (0, 1)]
    for text, room in enumerate(_divide_room(counts[0], counts[1], max(0, max_length - int(keep.sum())))):
        keep[np.flatnonzero(text_of == text)[:room]] = True
    return ids[keep], types[keep], True


def _divide_room(first: int, second: int, room: int) -> tuple[int, int]:
    """Return how many tokens of each text stay: the shorter text up to half the room, the longer text the rest."""
    if first <= second:
        shorter = min(first, room // 2)
        return shorter, room - shorter
    shorter = min(second, room // 2)
    return room - shorter, shorter
