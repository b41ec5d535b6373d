"""The input encoder of tasks that read texts: tokens, their layout in a micro-batch, and exported inputs."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
from annotated_types import Ge

from trainer.constraints import Note
from trainer.display import counted
from trainer.errors import ConfigError
from trainer.files.mapped import MappedRows, as_array, read_chunks
from trainer.protocols import Batching, Columns, EncodedColumns, StateDict
from trainer.task.packing import Layout, lay_out, padded_inputs, token_inputs
from trainer.task.supervised import InputFields, fingerprint
from trainer.task.tokenization import load_tokenizer, pad_id, train_wordpiece, unknown_id

if TYPE_CHECKING:
    from datasets import Dataset
    from tokenizers import Encoding, Tokenizer
    from torch import Tensor

logger = logging.getLogger(__name__)

MaxLength: TypeAlias = Annotated[int, Ge(3), Note("two are special tokens")]
VocabSize: TypeAlias = Annotated[int, Ge(100)]

_MAX_UNKNOWN = 0.05
_MAX_TRUNCATED = 0.2
"""A larger fraction of unknown tokens, or of truncated texts, is a warning."""


class Texts:
    """Encodes texts, or pairs of them, as tokens.

    Args:
        max_length: Tokens of a sample, special tokens included; longer texts are truncated.
        vocab_size: Entries of a vocabulary trained on the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.

    """

    def __init__(self, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool) -> None:
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.lowercase = lowercase
        self._user_tokenizer, self._load_error = _try_load(tokenizer)
        # Taken before `fit` switches on truncation in the same object.
        self._user_digest = None if self._user_tokenizer is None else fingerprint(self._user_tokenizer.to_str())
        self._tokenizer: Tokenizer | None = None

    def fingerprint_parts(self) -> tuple[object, ...]:
        """Return the settings that `fit` and `encode` depend on, as JSON.

        Raises:
            ConfigError: The named tokenizer does not exist, and no state has been loaded.
        """
        if self._user_digest is None:
            # An encoding without a tokenizer must not pass for the encoding of the missing one.
            self._raise_load_error()
        return (self.max_length, self.vocab_size, self.lowercase, self._user_digest)

    def fit(self, train: Dataset, roles: Sequence[str]) -> None:
        """Train the vocabulary on the columns `roles` of the training split; see `fit_texts`."""
        rows = train.select_columns(list(roles)).iter(1_000)
        self.fit_texts(batch[role] for batch in rows for role in roles)

    def fit_texts(self, batches: Iterable[list[str]]) -> None:
        """Train the vocabulary on batches of texts unless the user named a tokenizer.

        Raises:
            ConfigError: The named tokenizer does not exist.
        """
        self._raise_load_error()
        self._tokenizer = self._user_tokenizer or train_wordpiece(
            batches, vocab_size=self.vocab_size, lowercase=self.lowercase
        )
        self._tokenizer.enable_truncation(self.max_length)

    def _raise_load_error(self) -> None:
        if self._load_error is not None:
            raise ConfigError(*(f"task.{message}" for message in self._load_error.messages))

    @property
    def user_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the user named, or None if the vocabulary is trained."""
        return self._user_tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, truncating at `max_length`. Available after `fit` or `load_state_dict`."""
        assert self._tokenizer is not None, "neither fitted nor loaded"
        return self._tokenizer

    @property
    def pad_id(self) -> int:
        """The id that fills rows."""
        return pad_id(self.tokenizer)

    def encode(self, texts: Sequence[str]) -> EncodedColumns:
        """Return the columns `input_ids`, `truncated` and `unknown` (tokens outside the vocabulary) of texts."""
        return self.token_columns(self.tokenizer.encode_batch(list(texts)))

    def encode_untruncated(self, texts: Sequence[str]) -> list[Encoding]:
        """Return all tokens of texts without special tokens, whatever their length."""
        tokenizer = self.tokenizer
        tokenizer.no_truncation()
        try:
            encodings: list[Encoding] = tokenizer.encode_batch(list(texts), add_special_tokens=False)
        finally:
            tokenizer.enable_truncation(self.max_length)
        return encodings

    def token_columns(self, encodings: Sequence[Encoding]) -> EncodedColumns:
        """Return the columns of `encode` for texts that are tokenized already."""
        ids = [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return {
            "input_ids": ids,
            "truncated": [bool(encoding.overflowing) for encoding in encodings],
            "unknown": self.count_unknown(ids),
        }

    def count_unknown(self, samples: Sequence[np.ndarray]) -> list[int]:
        """Return the number of unknown tokens of each sample."""
        unknown = unknown_id(self.tokenizer)
        return [0 if unknown is None else int((ids == unknown).sum()) for ids in samples]

    def check(
        self, encoded: Mapping[str, MappedRows], names: Sequence[str] = ("input_ids", "truncated", "unknown")
    ) -> list[str]:
        """Log the share of unknown tokens and truncated texts of each split; return the high ones as warnings.

        Args:
            encoded: The splits.
            names: The columns of the tokens, of the truncated texts and of the numbers of unknown tokens.
        """
        ids, truncated_column, unknown_column = names
        warnings = []
        # A vocabulary without an entry for a character of training has no room for it.
        train = None if self.user_tokenizer is not None else encoded.get("train")
        is_full = train is not None and any(
            as_array(chunk[unknown_column]).any() for chunk in read_chunks(train, unknown_column)
        )
        for split, rows in encoded.items():
            num_tokens = num_unknown = num_truncated = 0
            for chunk in read_chunks(rows, *names):
                num_tokens += len(chunk[ids].combine_chunks().flatten())
                num_unknown += int(as_array(chunk[unknown_column]).sum())
                num_truncated += int(as_array(chunk[truncated_column]).sum())
            unknown, truncated = num_unknown / max(1, num_tokens), num_truncated / len(rows)
            remedies = []
            if unknown > _MAX_UNKNOWN:
                remedies.append(
                    f"Set task.tokenizer to one that knows these texts{', or raise task.vocab_size' * is_full}"
                )
            if truncated > _MAX_TRUNCATED:
                remedies.append("Raise task.max_length")
            summary = (
                f"{split}: {counted(len(rows), 'text')}, {100 * unknown:.1f}% of tokens unknown, "
                f"{100 * truncated:.1f}% of texts truncated at {self.max_length} tokens"
            )
            if remedies:
                warnings.append(". ".join([summary, *remedies]))
            else:
                logger.info(summary)
        return warnings

    @staticmethod
    def lengths(encoded: MappedRows, column: str = "input_ids") -> np.ndarray:
        """Return the number of tokens of each row of an encoded split, int64 (N,)."""
        return row_lengths(encoded, column)

    def lay_out(self, samples: Sequence[np.ndarray], batching: Batching) -> Layout:
        """Return the layout of the tokens of B samples."""
        return lay_out([len(sample) for sample in samples], max_length=self.max_length, batching=batching)

    def inputs_in_layout(self, rows: Columns, layout: Layout) -> dict[str, Tensor]:
        """Return the model's inputs for encoded rows, without the index of requested outputs per token."""
        inputs = token_inputs(rows["input_ids"], layout, pad_id=self.pad_id)
        if "token_type_ids" in rows:
            inputs["token_type_ids"] = layout.fill(rows["token_type_ids"], 0)
        return inputs

    def model_inputs(self, rows: Columns, batching: Batching) -> dict[str, Tensor]:
        """Return the model's inputs for encoded rows with one output per sample."""
        return self.inputs_in_layout(rows, self.lay_out(rows["input_ids"], batching))

    def info_fields(self) -> InputFields:
        return {
            "vocab_size": self.tokenizer.get_vocab_size(),
            "max_length": self.max_length,
            "pad_id": self.pad_id,
        }

    def axes(self, *more: str) -> dict[str, dict[int, str]]:
        """Return the symbolic dimensions of the exported inputs: ids, mask, and `more` inputs of the same shape."""
        return {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask", *more)}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return {"sequence": (1, self.max_length)}

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Return padded random ids; the first sample fills its row, the others have random lengths."""
        batch, width = sizes["batch"], sizes["sequence"]
        lengths = [width, *generator.integers(1, width, size=batch - 1, endpoint=True)]
        samples = [generator.integers(self.tokenizer.get_vocab_size(), size=length) for length in lengths]
        return padded_inputs(samples, pad_id=self.pad_id, width=width)

    def artifact_files(self) -> dict[str, str]:
        return {"tokenizer.json": self.tokenizer.to_str(pretty=True) + "\n"}

    def state_dict(self) -> StateDict:
        return {"tokenizer": self.tokenizer.to_str(), "given": self._user_digest}

    def load_state_dict(self, state: StateDict) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_str(state["tokenizer"])
        if self._load_error is not None:
            self._user_digest = state["given"]
        self._tokenizer.enable_truncation(self.max_length)


class TextTask:
    """The methods of `Task` that concern only the texts, for tasks whose targets depend on the tokens.

    Attributes:
        texts: Encodes the texts.
    """

    texts: Texts

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        return self.texts.check(encoded)

    def lengths(self, encoded: MappedRows) -> np.ndarray:
        return self.texts.lengths(encoded)

    def axes(self) -> dict[str, dict[int, str]]:
        return self.texts.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.texts.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self.texts.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        return self.texts.artifact_files()


def row_lengths(encoded: MappedRows, column: str) -> np.ndarray:
    """Return the number of values in each row of a column of lists, int64 (N,)."""
    offsets = (as_array(chunk[column].combine_chunks().offsets) for chunk in read_chunks(encoded, column))
    return np.concatenate([np.diff(each) for each in offsets])


def _try_load(tokenizer: str | None) -> tuple[Tokenizer | None, ConfigError | None]:
    """Return the named tokenizer, or the error; a task restored from a checkpoint works without the file."""
    if tokenizer is None:
        return None, None
    try:
        return load_tokenizer(tokenizer), None
    except ConfigError as error:
        return None, error
