"""Masked language modelling: tokens that are hidden are to be found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import ConfigError, format_error
from trainer.protocols import BLOCK_OF, Batch, Batching, Columns, Inputs, Target, TaskInfo
from trainer.task.answers import chosen, outputs_of_tokens
from trainer.task.fingerprint import fingerprint
from trainer.task.language import (
    Vocabulary,
    language_metrics,
    likeliest_tokens,
    need_special,
    special_id,
    special_ids,
)
from trainer.task.masking import choose, hide
from trainer.task.texts import Texts

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

_MASK = ("[MASK]", "<mask>")


class MaskedLm:
    """Texts in, the hidden tokens out (BERT's first task).

    Of each sample a share of the tokens is chosen, anew in every epoch, by the sample's own random generator. Of the
    chosen ones 80 % become the mask token, 10 % a random token that is not special, 10 % stay; all are targets.
    Special tokens and unknown ones are never chosen.

    What is chosen are units: tokens, or whole words as the tokenizer's pre-tokenizer splits them (a learnt vocabulary
    splits as BERT's does: at spaces and punctuation, and each Chinese character is a word of its own). The units of a
    sample with n tokens to choose from are put in random order and taken while they begin before `mask_share * n`
    tokens, the one that crosses it with the probability of its part before it: so the expected number of chosen tokens
    is `mask_share * n`, no sample is more than one unit off it, and the first unit is always taken.

    A text longer than `max_length` becomes several samples, its blocks, each framed as a text of its own.

    Source: Devlin et al. 2019, "BERT", https://arxiv.org/abs/1810.04805; whole words: Cui et al. 2021, "Pre-training
    with whole word masking for Chinese BERT", https://arxiv.org/abs/1906.08101.

    Args:
        max_length: Tokens of a sample, special ones included; longer texts become several.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json` or its folder; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.
        mask_share: Share of the tokens that are chosen, in (0, 1).
        whole_words: Choose whole words.

    Raises:
        ConfigError: A value is out of range, or the tokenizer has no mask token or does not split words.
    """

    monitor = "perplexity"
    monitors = ("perplexity", "accuracy")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("texts", "masked")
    level = "token"
    causal = False

    def __init__(
        self,
        *,
        max_length: int,
        vocab_size: int,
        tokenizer: str | None,
        lowercase: bool,
        mask_share: float,
        whole_words: bool,
    ) -> None:
        if not 0 < mask_share < 1:
            raise ConfigError(format_error("mask_share", "must be in (0, 1)", value=mask_share))
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.vocabulary = Vocabulary(self.texts)
        need_special(self.texts, _MASK, "mask token")
        if whole_words and self.texts.given is not None and self.texts.given.pre_tokenizer is None:
            problem = "the tokenizer does not split texts into words"
            raise ConfigError(format_error("whole_words", problem, "Use whole_words=false", value=whole_words))
        self.mask_share = mask_share
        self.whole_words = whole_words

    def columns(self) -> tuple[str, ...]:
        return ("text",)

    def input_columns(self) -> tuple[str, ...]:
        return ("text",)

    def fingerprint(self) -> str:
        return fingerprint("masked_lm/3", *self.texts.key())

    def fit(self, train: Dataset) -> None:
        """Learns the vocabulary from the training texts, and counts its tokens in them."""
        self.vocabulary.learn(train)
        self._take_ids()

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """The columns of `encode_inputs` of every block, and which text each row is a block of.

        What is to be found again is drawn in each epoch.
        """
        encodings = self.texts.tokenizer.encode_batch(list(rows["text"]))
        blocks = [[encoding, *encoding.overflowing] for encoding in encodings]
        columns = self._columns([block for of_one in blocks for block in of_one])
        block_of = [position for position, of_one in enumerate(blocks) for _ in of_one]
        return {**columns, "truncated": [False] * len(block_of), BLOCK_OF: block_of}

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `input_ids`, `word_ids` (-1 at what is never masked), `truncated`, `unknown` of what fits."""
        return self._columns(self.texts.tokenizer.encode_batch(list(rows["text"])))

    def _columns(self, encodings: Sequence[Encoding]) -> dict[str, list[Any]]:
        columns = self.texts.columns(encodings)
        columns["word_ids"] = []
        for encoding, ids in zip(encodings, columns["input_ids"], strict=True):
            words = np.array([-1 if word is None else word for word in encoding.word_ids], dtype=np.int32)
            words[np.isin(ids, self._special)] = -1
            columns["word_ids"].append(words)
        return columns

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        return self.texts.check(encoded)

    def lengths(self, encoded: Dataset) -> np.ndarray:
        return self.texts.lengths(encoded)

    def collate(self, rows: Columns, draws: SampleRng, batching: Batching) -> Batch:
        """Packed: outputs at the chosen tokens alone, targets (B, M). Padded: outputs and targets (B, T)."""
        masked, wanted, originals = [], [], []
        for position, (ids, words) in enumerate(zip(rows["input_ids"], rows["word_ids"], strict=True)):
            generator = draws.generator(position)
            places = choose(words, self.mask_share, self.whole_words, generator)
            wanted.append(places)
            originals.append(ids[places])
            masked.append(hide(ids, places, self._mask_id, self._ordinary, generator))
        layout = self.texts.lay_out(masked, batching)
        outputs, target = layout.outputs_at(wanted, originals)
        inputs = {**self.texts.inputs({"input_ids": masked}, layout), **outputs}
        return Batch(inputs, target, len(masked), tuple(draws.ids))

    def prediction_rows(self, rows: Columns) -> Columns:
        """Texts of the data with a mask token for a word near their middle, near enough to be read."""
        mask = self.texts.tokenizer.id_to_token(self._mask_id)
        texts = [text.split() for text in rows["text"]]
        for words in texts:
            words[min(len(words), self.texts.max_length // 2) // 2] = mask
        return {"text": [" ".join(words) for words in texts]}

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        """The texts as they are. Packed: outputs at their mask tokens alone are asked for."""
        layout = self.texts.lay_out(encoded["input_ids"], batching)
        return {**self.texts.inputs({"input_ids": encoded["input_ids"]}, layout), **layout.asked(self._masks(encoded))}

    def info(self) -> TaskInfo:
        return TaskInfo(**self.vocabulary.info_fields())

    def metrics(self) -> MetricCollection:
        """Perplexity and accuracy over the chosen tokens."""
        return language_metrics()

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        """For each row the `text` with its mask tokens `filled`: for each one the likeliest `token` and `probability`.

        A mask token past the end of what is read stays, and is None in `filled`. Where `top` is above 1, there are
        the `probabilities` of the `top` likeliest tokens. One that continues a word (`##ing`) is joined to it.
        """
        tokenizer = self.texts.tokenizer
        mask = tokenizer.id_to_token(self._mask_id)
        assert mask is not None
        answers: list[dict[str, Any]] = []
        found = outputs_of_tokens(output, self._masks(encoded), batching)
        for text, scores in zip(rows["text"], found, strict=True):
            start, *rest = text.split(mask)
            filled = [chosen("token", best) for best in likeliest_tokens(scores, tokenizer, top)][: len(rest)]
            for token, following in zip(filled, rest, strict=False):
                start = _joined(start, _spelled(tokenizer, token["token"])) + following
            unread = rest[len(filled) :]
            answers.append({"text": mask.join([start, *unread]), "filled": [*filled, *[None] * len(unread)]})
        return answers

    def axes(self) -> dict[str, dict[int, str]]:
        return self.texts.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.texts.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self.texts.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        return self.texts.artifact_files()

    def state_dict(self) -> dict[str, Any]:
        return self.vocabulary.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.vocabulary.load_state_dict(state)
        self._take_ids()

    def _masks(self, encoded: Columns) -> list[np.ndarray]:
        """The places of the mask tokens of each sample."""
        return [np.flatnonzero(ids == self._mask_id) for ids in encoded["input_ids"]]

    def _take_ids(self) -> None:
        tokenizer = self.texts.tokenizer
        mask_id = special_id(tokenizer, _MASK)
        assert mask_id is not None, "refused in the constructor"
        self._mask_id = mask_id
        self._special = special_ids(tokenizer)
        ids = np.array(sorted(tokenizer.get_vocab().values()), dtype=np.int64)
        self._ordinary = np.setdiff1d(ids, self._special)


def _joined(text: str, piece: str) -> str:
    """`text` and the text of a token after it: "walk " and "##ing" are "walking"."""
    return text.rstrip() + piece[2:] if piece.startswith("##") else text + piece


def _spelled(tokenizer: Tokenizer, token: str) -> str:
    """The text that a token stands for, without the space that some vocabularies keep in it."""
    number = tokenizer.token_to_id(token)
    return token if number is None else tokenizer.decode([number], skip_special_tokens=False).strip()
