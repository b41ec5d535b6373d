"""What the tasks over texts share: the tokenizer, the encoded columns, the layout of a micro-batch, exported inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.protocols import Batching, Columns
from trainer.ranges import at_least
from trainer.task.fingerprint import fingerprint
from trainer.task.packing import Layout, lay_out, padded_inputs, token_inputs
from trainer.task.tokenization import learn_wordpiece, load_tokenizer, pad_id, unknown_id

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor

logger = logging.getLogger(__name__)

_MANY_UNKNOWN = 0.05
_MANY_TRUNCATED = 0.2
"""Above these shares of tokens and of texts, a run starts with a warning."""


class Texts:
    """Texts, or pairs of them, as tokens.

    Args:
        max_length: Tokens of a sample, special ones included; longer texts are cut.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a name on the hub; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.

    Raises:
        ConfigError: A value is out of range.
    """

    def __init__(self, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool) -> None:
        short = "must be at least 3, two of them special tokens"
        raise_if_any(
            format_error("max_length", short, value=max_length) if max_length < 3 else None,
            at_least("vocab_size", vocab_size, 100),
        )
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.lowercase = lowercase
        self._given, self._missing = _load(tokenizer)
        # Of what was read: truncation is switched on in it later.
        self._given_digest = None if self._given is None else fingerprint(self._given.to_str())
        self._tokenizer: Tokenizer | None = None

    def key(self) -> tuple[Any, ...]:
        """What `learn` and `encode` depend on beside the data; JSON.

        Raises:
            ConfigError: A tokenizer was given that is not there, nor is its state loaded.
        """
        if self._given_digest is None:
            # What was encoded without a tokenizer must not be taken for what one that is missing would have made.
            self._refuse_missing()
        return (self.max_length, self.vocab_size, self.lowercase, self._given_digest)

    def learn(self, train: Dataset, roles: Sequence[str]) -> None:
        """Learns the vocabulary from the columns `roles` of the training split; see `learn_from`."""
        rows = train.select_columns(list(roles)).iter(1_000)
        self.learn_from(batch[role] for batch in rows for role in roles)

    def learn_from(self, batches: Iterable[list[str]]) -> None:
        """Learns the vocabulary from batches of texts, unless a tokenizer was given.

        Raises:
            ConfigError: A tokenizer was given that is not there.
        """
        self._refuse_missing()
        self._tokenizer = self._given or learn_wordpiece(batches, vocab_size=self.vocab_size, lowercase=self.lowercase)
        self._tokenizer.enable_truncation(self.max_length)

    def _refuse_missing(self) -> None:
        if self._missing is not None:
            raise ConfigError(*(f"task.{message}" for message in self._missing.messages))

    @property
    def given(self) -> Tokenizer | None:
        """The tokenizer that the user named; None: a vocabulary is learnt."""
        return self._given

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, truncating at `max_length`; there is one after `learn` or `load_state_dict`."""
        assert self._tokenizer is not None, "neither fitted nor loaded"
        return self._tokenizer

    @property
    def pad_id(self) -> int:
        """The id that fills rows."""
        return pad_id(self.tokenizer)

    def encode(self, texts: Sequence[str]) -> dict[str, list[Any]]:
        """Columns `input_ids`, `truncated`, `unknown` (tokens outside the vocabulary)."""
        return self.columns(self.tokenizer.encode_batch(list(texts)))

    def encode_whole(self, texts: Sequence[str]) -> list[Encoding]:
        """Texts as their tokens alone: without special ones, whatever their length."""
        tokenizer = self.tokenizer
        tokenizer.no_truncation()
        try:
            found: list[Encoding] = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        finally:
            tokenizer.enable_truncation(self.max_length)
        return found

    def columns(self, encodings: Sequence[Encoding]) -> dict[str, list[Any]]:
        """The columns of texts that are encoded already."""
        unknown = unknown_id(self.tokenizer)
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return {
            "input_ids": ids,
            "truncated": [bool(encoding.overflowing) for encoding in encodings],
            "unknown": [0 if unknown is None else int((row == unknown).sum()) for row in ids],
        }

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        """Logs the shares of unknown tokens and truncated texts of each split; returns a warning where one is high."""
        warnings = []
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
            told = (
                f"{split}: {len(rows)} texts, {100 * unknown:.1f} % of tokens unknown, "
                f"{100 * truncated:.1f} % of texts truncated at {self.max_length} tokens"
            )
            if high:
                warnings.append("; ".join([told, *high]))
            else:
                logger.info(told)
        return warnings

    @staticmethod
    def lengths(encoded: Dataset, column: str = "input_ids") -> np.ndarray:
        """Tokens of each row of an encoded split, int64 (N,)."""
        return row_lengths(encoded, column)

    def lay_out(self, samples: Sequence[np.ndarray], batching: Batching) -> Layout:
        """Where the tokens of B samples lie."""
        return lay_out([len(sample) for sample in samples], max_length=self.max_length, batching=batching)

    def inputs(self, rows: Columns, layout: Layout) -> dict[str, Tensor]:
        """The model's inputs for encoded rows, without what says where its outputs are wanted."""
        inputs = token_inputs(rows["input_ids"], layout, pad_id=self.pad_id)
        if "token_type_ids" in rows:
            inputs["token_type_ids"] = layout.fill(rows["token_type_ids"], 0)
        return inputs

    def model_inputs(self, rows: Columns, batching: Batching) -> dict[str, Tensor]:
        """The model's inputs for encoded rows with one output a sample."""
        layout = self.lay_out(rows["input_ids"], batching)
        inputs = self.inputs(rows, layout)
        return {**inputs, "token_index": layout.index()} if layout.packed else inputs

    def info_fields(self) -> dict[str, Any]:
        return {
            "vocab_size": self.tokenizer.get_vocab_size(),
            "max_length": self.max_length,
            "pad_id": self.pad_id,
        }

    def axes(self, *more: str) -> dict[str, dict[int, str]]:
        """The symbolic dimensions of the exported inputs: ids, mask, and `more` of their shape."""
        return {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask", *more)}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return {"sequence": (1, self.max_length)}

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Random token ids, padded; the first sample fills the row, the others have random lengths."""
        batch, width = sizes["batch"], sizes["sequence"]
        lengths = [width, *generator.integers(1, width, size=batch - 1, endpoint=True)]
        samples = [generator.integers(self.tokenizer.get_vocab_size(), size=length) for length in lengths]
        return padded_inputs(samples, pad_id=self.pad_id, width=width)

    def artifact_files(self) -> dict[str, str]:
        return {"tokenizer.json": self.tokenizer.to_str(pretty=True) + "\n"}

    def state_dict(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer.to_str(), "given": self._given_digest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(state["tokenizer"])
        if self._missing is not None:
            self._given_digest = state["given"]
        self._tokenizer.enable_truncation(self.max_length)


def row_lengths(encoded: Dataset, column: str) -> np.ndarray:
    """How many values a column of lists has in each row of an encoded split, int64 (N,)."""
    rows = encoded.with_format("arrow").select_columns(column)
    return np.concatenate([batch[column].combine_chunks().value_lengths() for batch in rows.iter(10_000)])


def _load(tokenizer: str | None) -> tuple[Tokenizer | None, ConfigError | None]:
    """A given tokenizer, or why there is none; a checkpoint holds its own and does without the file."""
    if tokenizer is None:
        return None, None
    try:
        return load_tokenizer(tokenizer), None
    except ConfigError as error:
        return None, error
