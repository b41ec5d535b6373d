"""Causal language modelling: each token is predicted from those before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from trainer.protocols import BLOCK_OF, Batch, Batching, Columns, Inputs, Target, TaskInfo
from trainer.task.answers import outputs_of_tokens, rounded
from trainer.task.fingerprint import fingerprint
from trainer.task.language import (
    Vocabulary,
    language_metrics,
    likeliest_tokens,
    need_special,
    special_id,
)
from trainer.task.texts import Texts
from trainer.task.tokenization import unknown_id

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Tokenizer
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

_END = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
_NUM_NEXT = 5


class CausalLm:
    """Documents in, the next token at each position out.

    A document is its tokens without special ones, and an end-of-text token. A sample is a document or, of one that
    is longer than `max_length`, a block; each block begins with the last token of the one before, so that every token
    of a document but its first is a target exactly once. Packed rows hold several samples, which do not see each other.

    Source: Radford et al. 2019, "Language models are unsupervised multitask learners" (GPT-2).

    Args:
        max_length: Tokens of a sample; longer documents become several.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json` or its folder; None learns a WordPiece vocabulary, whose `[SEP]` ends a text.
        lowercase: Lower case and no accents, in a learnt vocabulary.

    Raises:
        ConfigError: A value is out of range, or the tokenizer has no end-of-text token.
    """

    monitor = "perplexity"
    monitors = ("perplexity", "accuracy")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("texts", "next_tokens")
    level = "token"
    causal = True

    def __init__(self, *, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.vocabulary = Vocabulary(self.texts)
        need_special(self.texts, _END, "end-of-text token")

    @property
    def end_id(self) -> int:
        """The end-of-text token."""
        found = special_id(self.texts.tokenizer, _END)
        assert found is not None, "refused in the constructor"
        return found

    def columns(self) -> tuple[str, ...]:
        return ("text",)

    def input_columns(self) -> tuple[str, ...]:
        return ("text",)

    def fingerprint(self) -> str:
        return fingerprint("causal_lm/3", *self.texts.key())

    def fit(self, train: Dataset) -> None:
        """Learns the vocabulary from the training texts, and counts its tokens in them."""
        self.vocabulary.learn(train)

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `input_ids`, `truncated` (never), `unknown`, and which document each row is a block of."""
        encodings = self.texts.encode_whole(rows["text"])
        unknown, length = unknown_id(self.texts.tokenizer), self.texts.max_length
        blocks, block_of = [], []
        for position, encoding in enumerate(encodings):
            ids = np.array([*encoding.ids, self.end_id], dtype=np.int32)
            starts = range(0, max(1, len(ids) - 1), length - 1)
            blocks += [ids[start : start + length] for start in starts]
            block_of += [position] * len(starts)
        return {
            "input_ids": blocks,
            "truncated": [False] * len(blocks),
            "unknown": [0 if unknown is None else int((ids == unknown).sum()) for ids in blocks],
            BLOCK_OF: block_of,
        }

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `input_ids`, `truncated`, `unknown` (tokens outside the vocabulary) of the beginning of each text.

        Without the end-of-text token: what comes next is to be said.
        """
        encodings = self.texts.tokenizer.encode_batch(list(rows["text"]), add_special_tokens=False)
        return self.texts.columns(encodings)

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        return self.texts.check(encoded)

    def lengths(self, encoded: Dataset) -> np.ndarray:
        return self.texts.lengths(encoded)

    def collate(self, rows: Columns, draws: SampleRng, batching: Batching) -> Batch:
        """Outputs and targets at every token, (R, L) in the packed layout, (B, T) in the others."""
        layout = self.texts.lay_out(rows["input_ids"], batching)
        target = layout.fill([np.append(ids[1:], -100) for ids in rows["input_ids"]], -100)
        return Batch(self.texts.inputs(rows, layout), target, len(rows["input_ids"]), tuple(draws.ids))

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        """Packed: outputs are asked for sample by sample."""
        layout = self.texts.lay_out(encoded["input_ids"], batching)
        return {**self.texts.inputs(encoded, layout), **layout.asked(_everywhere(encoded))}

    def info(self) -> TaskInfo:
        return TaskInfo(**self.vocabulary.info_fields())

    def metrics(self) -> MetricCollection:
        """Perplexity and accuracy over the tokens that follow another."""
        return language_metrics()

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        """For each row the likeliest tokens that come `next`, 5 or `top` if that is more, and the `perplexity`.

        The perplexity is that of its tokens but the first, without an end of text; None where there is one alone.
        """
        samples = outputs_of_tokens(output, _everywhere(encoded), batching)
        last = torch.stack([scores[-1] for scores in samples])
        answers: list[dict[str, Any]] = []
        found = likeliest_tokens(last, self.texts.tokenizer, max(_NUM_NEXT, top))
        for ids, scores, best in zip(encoded["input_ids"], samples, found, strict=True):
            target = torch.from_numpy(ids[1:].astype(np.int64)).to(scores.device)
            surprise = F.cross_entropy(scores[:-1].float(), target).exp().item() if len(target) else None
            following = [{"token": token, "probability": probability} for token, probability in best]
            answers.append({"next": following, "perplexity": None if surprise is None else rounded(surprise)})
        return answers

    def axes(self) -> dict[str, dict[int, str]]:
        return self.texts.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.texts.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self.texts.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        """`tokenizer.json`, which adds no special tokens: it encodes a prompt as the documents were."""
        return {"tokenizer.json": self._unframed().to_str(pretty=True) + "\n"}

    def state_dict(self) -> dict[str, Any]:
        return self.vocabulary.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vocabulary.load_state_dict(state)

    def _unframed(self) -> Tokenizer:
        from tokenizers import Tokenizer

        copy = Tokenizer.from_str(self.texts.tokenizer.to_str())
        copy.post_processor = None
        return copy


def _everywhere(encoded: Columns) -> list[np.ndarray]:
    """The places of all tokens of each sample."""
    return [np.arange(len(ids)) for ids in encoded["input_ids"]]
