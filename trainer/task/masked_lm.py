"""Masked language modeling: predict tokens that are hidden from the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from trainer.constraints import Fraction, HubPath, validated
from trainer.errors import ConfigError, format_error
from trainer.protocols import BLOCK_OF, Batch, Batching, Columns, EncodedColumns, Inputs, Prediction, StateDict, Target
from trainer.task.class_targets import best_prediction
from trainer.task.language_modeling import LanguageModeling, most_likely_tokens, require_special_token
from trainer.task.packing import select_token_outputs
from trainer.task.texts import MaxLength, Texts, VocabSize
from trainer.task.tokenization import find_special_id, special_ids

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor

    from trainer.sample_rng import SampleRng

_MASK = ("[MASK]", "<mask>")
_MASKED, _RANDOM = 0.8, 0.1
"""Fractions of the chosen tokens that become the mask token, and another token; the others stay unchanged."""


class MaskedLm(LanguageModeling):
    """Predict the hidden tokens of a text (BERT's first task).

    In every epoch the sample's own random generator chooses a fraction of the sample's tokens. Of the chosen tokens
    80% become the mask token, 10% a random token that is not special, and 10% stay; all of them are targets. Special
    tokens and unknown tokens are never chosen.

    The choice is between units: tokens, or whole words as the tokenizer's pre-tokenizer splits them (a trained
    vocabulary splits as BERT does: at spaces and punctuation, and each Chinese character is a word of its own). The
    units of a sample with n eligible tokens are put in random order and taken as long as they begin before
    `mask_share * n` tokens; the unit that crosses this limit is taken with the probability of its part before the
    limit. So the expected number of chosen tokens is `mask_share * n`, and no sample is more than one unit off. The
    first unit is always taken.

    A text longer than `max_length` becomes several samples, its blocks, each framed as a text of its own.

    Source: Devlin et al. 2019, "BERT", https://arxiv.org/abs/1810.04805; whole words: Cui et al. 2021, "Pre-training
    with whole word masking for Chinese BERT", https://arxiv.org/abs/1906.08101.

    Args:
        max_length: Tokens of a sample, special tokens included; longer texts become several samples.
        vocab_size: Entries of a vocabulary trained on the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.
        mask_share: Fraction of the tokens to choose, in (0, 1).
        whole_words: Choose whole words.

    Raises:
        ConfigError: The tokenizer has no mask token or does not split words.
    """

    monitor = "perplexity"
    monitors = ("perplexity", "accuracy")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("texts", "masked")
    level = "token"
    causal = False

    @validated()
    def __init__(
        self,
        *,
        max_length: MaxLength,
        vocab_size: VocabSize,
        tokenizer: HubPath | None,
        lowercase: bool,
        mask_share: Fraction,
        whole_words: bool,
    ) -> None:
        super().__init__("masked_lm/3", Texts(max_length, vocab_size, tokenizer, lowercase))
        require_special_token(self.texts, _MASK, "mask token")
        user_tokenizer = self.texts.user_tokenizer
        if whole_words and user_tokenizer is not None and user_tokenizer.pre_tokenizer is None:
            problem = "the tokenizer does not split texts into words"
            raise ConfigError(format_error("whole_words", problem, "Use task.whole_words=false", value=whole_words))
        self.mask_share = mask_share
        self.whole_words = whole_words

    def fit(self, train: Dataset) -> None:
        super().fit(train)
        self._set_ids()

    def encode(self, rows: Columns) -> EncodedColumns:
        """Return the columns of `encode_inputs` and `BLOCK_OF` of every block.

        Masks are not part of them, because they change in every epoch.
        """
        encodings = self.texts.tokenizer.encode_batch(list(rows["text"]))
        blocks = [[encoding, *encoding.overflowing] for encoding in encodings]
        columns = self._word_columns([block for text_blocks in blocks for block in text_blocks])
        block_of = [position for position, text_blocks in enumerate(blocks) for _ in text_blocks]
        return {**columns, "truncated": [False] * len(block_of), BLOCK_OF: block_of}

    def encode_inputs(self, rows: Columns) -> EncodedColumns:
        """Return the columns `input_ids`, `word_ids` (-1 for a token that is never masked), `truncated`, `unknown`."""
        return self._word_columns(self.texts.tokenizer.encode_batch(list(rows["text"])))

    def _word_columns(self, encodings: Sequence[Encoding]) -> EncodedColumns:
        columns = self.texts.token_columns(encodings)
        columns["word_ids"] = []
        for encoding, ids in zip(encodings, columns["input_ids"], strict=True):
            words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int32)
            words[np.isin(ids, self._special_ids)] = -1
            columns["word_ids"].append(words)
        return columns

    def collate(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        """Make a batch. Packed: outputs only at chosen tokens, targets (B, M). Padded: outputs and targets (B, T)."""
        masked, chosen, originals = [], [], []
        for position, (ids, words) in enumerate(zip(rows["input_ids"], rows["word_ids"], strict=True)):
            generator = rng.generator(position)
            tokens = choose_tokens(words, self.mask_share, self.whole_words, generator)
            chosen.append(tokens)
            originals.append(ids[tokens])
            masked.append(mask_tokens(ids, tokens, self._mask_id, self._ordinary_ids, generator))
        layout = self.texts.lay_out(masked, batching)
        request, target = layout.request_targets(chosen, originals)
        inputs = {**self.texts.inputs_in_layout({"input_ids": masked}, layout), **request}
        return Batch(inputs, target, len(masked), tuple(rng.ids))

    def prediction_rows(self, rows: Columns) -> Columns:
        """Replace a word near the middle of each text, within the tokens that are read, with a mask token."""
        mask = self.texts.tokenizer.id_to_token(self._mask_id)
        texts = [text.split() for text in rows["text"]]
        for words in texts:
            words[min(len(words), self.texts.max_length // 2) // 2] = mask
        return {"text": [" ".join(words) for words in texts]}

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        """Make the model's inputs of unchanged texts; packed inputs request outputs only at their mask tokens."""
        layout = self.texts.lay_out(encoded["input_ids"], batching)
        return {
            **self.texts.inputs_in_layout({"input_ids": encoded["input_ids"]}, layout),
            **layout.request_outputs(self._mask_offsets(encoded)),
        }

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[Prediction]:
        """Return the `text` of each row with its mask tokens `filled` by the most likely `token` and its `probability`.

        A mask token after the end of the tokens that are read stays, and is None in `filled`. If `top` is above 1,
        there are the `probabilities` of the `top` most likely tokens. A token that continues a word (`##ing`) is joined
        to it.
        """
        tokenizer = self.texts.tokenizer
        mask = tokenizer.id_to_token(self._mask_id)
        assert mask is not None
        predictions: list[Prediction] = []
        outputs = select_token_outputs(output, self._mask_offsets(encoded), batching)
        for text, scores in zip(rows["text"], outputs, strict=True):
            start, *rest = text.split(mask)
            filled = [best_prediction("token", best) for best in most_likely_tokens(scores, tokenizer, top)]
            filled = filled[: len(rest)]
            for token, following in zip(filled, rest, strict=False):
                start = _join(start, _spell(tokenizer, token["token"])) + following
            unread = rest[len(filled) :]
            predictions.append({"text": mask.join([start, *unread]), "filled": [*filled, *[None] * len(unread)]})
        return predictions

    def load_state_dict(self, state: StateDict) -> None:
        super().load_state_dict(state)
        self._set_ids()

    def _mask_offsets(self, encoded: Columns) -> list[np.ndarray]:
        """Return the offsets of the mask tokens of each sample."""
        return [np.flatnonzero(ids == self._mask_id) for ids in encoded["input_ids"]]

    def _set_ids(self) -> None:
        tokenizer = self.texts.tokenizer
        mask_id = find_special_id(tokenizer, _MASK)
        assert mask_id is not None, "checked in the constructor"
        self._mask_id = mask_id
        self._special_ids = special_ids(tokenizer)
        ids = np.array(sorted(tokenizer.get_vocab().values()), dtype=np.int64)
        self._ordinary_ids = np.setdiff1d(ids, self._special_ids)


def choose_tokens(words: np.ndarray, share: float, whole_words: bool, generator: np.random.Generator) -> np.ndarray:
    """Choose the tokens of a sample to predict, as ascending offsets; see `MaskedLm` for the distribution.

    Args:
        words: The word of each token, (T,); -1 for a token that is never chosen.
        share: Fraction of the eligible tokens, in (0, 1).
        whole_words: Choose all tokens of a word together.
        generator: Draws the order of the units, and whether to take the unit that crosses the limit.
    """
    places = np.flatnonzero(words >= 0)
    if not len(places):
        return places
    units = words[places] if whole_words else places
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    order = generator.permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    taken = share * len(places) - before > generator.random() * sizes[order]
    taken[0] = True
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[taken]] = True
    kept: np.ndarray = places[chosen[unit]]
    return kept


def mask_tokens(
    ids: np.ndarray, tokens: np.ndarray, mask_id: int, replacements: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Return the ids of a sample with some tokens masked, replaced or left, (T,).

    Args:
        ids: The original ids, (T,).
        tokens: Offsets of the chosen tokens.
        mask_id: The id of the mask token.
        replacements: The ids that may replace a chosen token.
        generator: Draws what happens to each chosen token.
    """
    draw = generator.random(len(tokens))
    random = replacements[generator.integers(len(replacements), size=len(tokens))]
    result = ids.copy()
    result[tokens] = np.where(draw < _MASKED, mask_id, np.where(draw < _MASKED + _RANDOM, random, ids[tokens]))
    return result


def _join(text: str, piece: str) -> str:
    """Append the text of a token: "walk " and "##ing" become "walking"."""
    return text.rstrip() + piece[2:] if piece.startswith("##") else text + piece


def _spell(tokenizer: Tokenizer, token: str) -> str:
    """Return the text of a token without the space that some vocabularies keep in it."""
    token_id = tokenizer.token_to_id(token)
    return token if token_id is None else tokenizer.decode([token_id], skip_special_tokens=False).strip()
