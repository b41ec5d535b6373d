"""Causal language modeling: predict each token from the tokens before it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from trainer.constraints import HubPath, validated
from trainer.protocols import BLOCK_OF, Batch, Batching, Columns, EncodedColumns, Inputs, Prediction, Target
from trainer.task.class_targets import round_probability
from trainer.task.language_modeling import LanguageModeling, most_likely_tokens, require_special_token
from trainer.task.packing import IGNORE_INDEX, select_token_outputs
from trainer.task.texts import MaxLength, Texts, VocabSize
from trainer.task.tokenization import find_special_id

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from torch import Tensor

    from trainer.sample_rng import SampleRng

_END = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "[SEP]")
_NUM_NEXT = 5


class CausalLm(LanguageModeling):
    """Predict the next token at each position of a document.

    A document is its tokens without special ones, and an end-of-text token. A sample is a document or, if it is longer
    than `max_length`, a block; each block begins with the last token of the block before, so that every token of a
    document except its first is a target exactly once. Packed rows contain several samples, which do not see each
    other.

    Source: Radford et al. 2019, "Language models are unsupervised multitask learners" (GPT-2).

    Args:
        max_length: Tokens of a sample; longer documents become several samples.
        vocab_size: Entries of a vocabulary trained on the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary, whose `[SEP]`
            ends a text.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.

    Raises:
        ConfigError: The tokenizer has no end-of-text token.
    """

    monitor = "perplexity"
    monitors = ("perplexity", "accuracy")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("texts", "next_tokens")
    level = "token"
    causal = True

    @validated()
    def __init__(
        self, *, max_length: MaxLength, vocab_size: VocabSize, tokenizer: HubPath | None, lowercase: bool
    ) -> None:
        super().__init__("causal_lm/3", Texts(max_length, vocab_size, tokenizer, lowercase))
        require_special_token(self.texts, _END, "end-of-text token")

    @property
    def end_id(self) -> int:
        """The id of the end-of-text token."""
        end_id = find_special_id(self.texts.tokenizer, _END)
        assert end_id is not None, "checked in the constructor"
        return end_id

    def encode(self, rows: Columns) -> EncodedColumns:
        """Return the columns `input_ids`, `truncated` (always False), `unknown` and `BLOCK_OF` of every block."""
        length = self.texts.max_length
        blocks, block_of = [], []
        for position, encoding in enumerate(self.texts.encode_untruncated(rows["text"])):
            ids = np.array([*encoding.ids, self.end_id], dtype=np.int32)
            starts = range(0, max(1, len(ids) - 1), length - 1)
            blocks += [ids[start : start + length] for start in starts]
            block_of += [position] * len(starts)
        return {
            "input_ids": blocks,
            "truncated": [False] * len(blocks),
            "unknown": self.texts.count_unknown(blocks),
            BLOCK_OF: block_of,
        }

    def encode_inputs(self, rows: Columns) -> EncodedColumns:
        """Return the columns `input_ids`, `truncated` and `unknown` of the beginning of each text.

        There is no end-of-text token, because the prediction continues the text.
        """
        encodings = self.texts.tokenizer.encode_batch(list(rows["text"]), add_special_tokens=False)
        return self.texts.token_columns(encodings)

    def collate(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        """Make a batch with outputs and targets at every token: packed (R, L), else (B, T)."""
        layout = self.texts.lay_out(rows["input_ids"], batching)
        target = layout.fill([np.append(ids[1:], IGNORE_INDEX) for ids in rows["input_ids"]], IGNORE_INDEX)
        return Batch(self.texts.inputs_in_layout(rows, layout), target, len(rows["input_ids"]), tuple(rng.ids))

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        """Make the model's inputs; packed inputs request the outputs sample by sample."""
        layout = self.texts.lay_out(encoded["input_ids"], batching)
        return {
            **self.texts.inputs_in_layout(encoded, layout),
            **layout.request_outputs(_all_tokens(encoded)),
        }

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[Prediction]:
        """Return the most likely `next` tokens of each row, at least 5 or `top` if that is more, and its `perplexity`.

        The perplexity is over all tokens except the first, without an end of text; None for a single token.
        """
        samples = select_token_outputs(output, _all_tokens(encoded), batching)
        last = torch.stack([scores[-1] for scores in samples])
        predictions: list[Prediction] = []
        next_tokens = most_likely_tokens(last, self.texts.tokenizer, max(_NUM_NEXT, top))
        for ids, scores, best in zip(encoded["input_ids"], samples, next_tokens, strict=True):
            target = torch.from_numpy(ids[1:].astype(np.int64)).to(scores.device)
            perplexity = F.cross_entropy(scores[:-1].float(), target).exp().item() if len(target) else None
            predictions.append(
                {
                    "next": [{"token": token, "probability": probability} for token, probability in best],
                    "perplexity": None if perplexity is None else round_probability(perplexity),
                }
            )
        return predictions

    def artifact_files(self) -> dict[str, str]:
        """Return `tokenizer.json`, which adds no special tokens, so that prompts are encoded like documents."""
        return {"tokenizer.json": self._tokenizer_without_frame().to_str(pretty=True) + "\n"}

    def _tokenizer_without_frame(self) -> Tokenizer:
        from tokenizers import Tokenizer

        copy = Tokenizer.from_str(self.texts.tokenizer.to_str())
        copy.post_processor = None
        return copy


def _all_tokens(encoded: Columns) -> list[np.ndarray]:
    """Return the offsets of all tokens of each sample."""
    return [np.arange(len(ids)) for ids in encoded["input_ids"]]
