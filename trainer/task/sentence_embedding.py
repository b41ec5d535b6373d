"""Embed texts as vectors that are near each other if the texts mean the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from trainer.constraints import Count, Finite, HubPath, Rule, validated
from trainer.files.mapped import MappedRows, as_array, read_chunks
from trainer.protocols import Batch, Batching, Columns, EncodedColumns, Inputs, Prediction, StateDict, Target, TaskInfo
from trainer.task.numeric import SimilarityTarget
from trainer.task.supervised import fingerprint
from trainer.task.texts import MaxLength, Texts, TextTask, VocabSize

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

logger = logging.getLogger(__name__)

Supervision = Literal["none", "pairs", "triplets", "scored"]

_TEXT_ROLES: dict[Supervision, tuple[str, ...]] = {
    "none": ("text",),
    "pairs": ("text", "positive"),
    "triplets": ("text", "positive", "negative"),
    "scored": ("text", "text_pair"),
}
_MONITORS: dict[Supervision, str] = {"none": "loss", "pairs": "mrr", "triplets": "mrr", "scored": "spearman"}


class SentenceEmbedding(TextTask):
    """Map a text to a vector. Each sample of a batch has K texts, whose vectors follow each other in the output.

    `supervision` tells which texts mean the same:

    * `none`: no labels. Each text is twice in a training batch, one copy after the other, and the model's dropout makes
      two views of it (unsupervised SimCSE). Without dropout both views are equal, and only the negatives teach.
    * `pairs`: a text and its positive;
    * `triplets`: a text, its positive and a hard negative;
    * `scored`: two texts and a score of their similarity. The target is `similarity`, for a loss such as
      `cosine_embedding`; with the other settings it is `views`, for a loss such as `info_nce`.

    Source: Gao et al. 2021, https://arxiv.org/abs/2104.08821; Reimers and Gurevych 2019,
    https://arxiv.org/abs/1908.10084.

    Args:
        supervision: The source of texts that mean the same.
        evaluate_pairs: With `none`: evaluate each text against its positive, which training never reads.
        threshold: With `scored`: the similarity is 1 for a score of at least this value, else -1. None maps the range
            of the training scores to [-1, 1], so two scores become -1 and 1 (see `SimilarityTarget`).
        dim: Width of a vector, by a projection; None keeps the model's features.
        max_length: Tokens of a text, special tokens included; longer texts are truncated.
        vocab_size: Entries of a vocabulary trained on the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.

    Raises:
        ConfigError: The supervision does not support it.
    """

    monitor: str
    monitors = (
        "mrr",
        "recall_at_1",
        "recall_at_5",
        "triplet_accuracy",
        "alignment",
        "uniformity",
        "pearson",
        "spearman",
    )
    # Not a literal: the supervision decides, so code that reads this class before torch is loaded must not see a value.
    target: Target
    inputs: Inputs = "tokens"
    outputs_by = "dim"
    script = ("texts", "embeddings")

    @validated(
        Rule(
            "not evaluate_pairs or supervision == 'none'",
            key="evaluate_pairs",
            problem="only supervision=none supports it; other settings are evaluated on the texts they train on",
            remedy="Use task.evaluate_pairs=false",
        ),
        Rule(
            "threshold is None or supervision == 'scored'",
            key="threshold",
            problem="only supervision=scored reads scores",
            remedy="Use task.threshold=null",
        ),
    )
    def __init__(
        self,
        *,
        supervision: Literal["none", "pairs", "triplets", "scored"],
        evaluate_pairs: bool,
        threshold: Finite | None,
        dim: Count | None,
        max_length: MaxLength,
        vocab_size: VocabSize,
        tokenizer: HubPath | None,
        lowercase: bool,
    ) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.supervision = supervision
        self.evaluate_pairs = evaluate_pairs
        self.similarity_target = SimilarityTarget(threshold)
        self.dim = dim
        self.target = "similarity" if supervision == "scored" else "views"
        self.monitor = "mrr" if evaluate_pairs else _MONITORS[supervision]
        self.num_train = 0

    @property
    def roles(self) -> tuple[str, ...]:
        """The columns of texts that the task reads."""
        return _TEXT_ROLES["pairs"] if self.evaluate_pairs else _TEXT_ROLES[self.supervision]

    def input_columns(self) -> tuple[str, ...]:
        return ("text",)

    def columns(self) -> tuple[str, ...]:
        return (*self.roles, "score") if self.supervision == "scored" else self.roles

    def fingerprint(self) -> str:
        settings = (self.supervision, self.evaluate_pairs, self.similarity_target.threshold)
        return fingerprint("sentence_embedding/1", *settings, *self.texts.fingerprint_parts())

    def fit(self, train: Dataset) -> None:
        """Train the vocabulary on the training texts, and learn the range of their scores.

        Raises:
            DataError: All pairs have the same score.
        """
        self.num_train = len(train)
        if self.supervision == "scored":
            self.similarity_target.fit(train)
        self.texts.fit(train, _TEXT_ROLES[self.supervision])

    def encode(self, rows: Columns) -> EncodedColumns:
        """Return `input_ids`, `truncated`, `unknown`, the same for other roles (`positive_ids`, ...), `similarity`.

        Raises:
            RowError: A score is not finite.
        """
        columns = self.encode_inputs(rows)
        for role in self.roles[1:]:
            encoded = self.texts.encode(rows[role])
            columns |= {name: encoded[source] for name, source in _columns(role).items()}
        if self.supervision == "scored":
            columns["similarity"] = self.similarity_target.encode(rows["score"])
        return columns

    def encode_inputs(self, rows: Columns) -> EncodedColumns:
        return self.texts.encode(rows["text"])

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Return the warnings of `Texts.check` for each role, and log how scores become similarities."""
        warnings = []
        for split, rows in encoded.items():
            for role in self.roles:
                warnings += self.texts.check({f"{split}, {role}": rows}, tuple(_columns(role)))
        if self.supervision == "scored" and any(
            (np.abs(as_array(chunk["similarity"])) != 1).any() for chunk in read_chunks(encoded["train"], "similarity")
        ):
            assert self.similarity_target.range is not None
            message = "scores of %g to %g become similarities of -1 to 1; set task.threshold to get only -1 and 1"
            logger.info(message, *self.similarity_target.range)
        return warnings

    def lengths(self, encoded: MappedRows) -> np.ndarray:
        """Return the number of tokens of all views of each row in training, int64 (N,)."""
        lengths: np.ndarray = np.sum([self.texts.lengths(encoded, view) for view in self._views(training=True)], axis=0)
        return lengths

    def collate(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        views = [rows[name] for name in self._views(rng.training)]
        samples = [sample[row] for row in range(len(rng.ids)) for sample in views]
        inputs = self.model_inputs({"input_ids": samples}, batching)
        if self.supervision == "scored":
            target = self.similarity_target.to_tensor(rows["similarity"])
        else:
            target = torch.tensor(rng.ids, dtype=torch.int64)[:, None].repeat(1, len(views))
        return Batch(inputs, target, len(target), tuple(rng.ids))

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        return self.texts.model_inputs(encoded, batching)

    def info(self) -> TaskInfo:
        return TaskInfo(**self.texts.info_fields(), num_outputs=self.dim, num_train=self.num_train)

    def metrics(self) -> MetricCollection:
        """Return correlations for `scored`, uniformity for texts without positives, else retrieval metrics."""
        from trainer.task.embedding_metrics import retrieval_metrics, score_metrics, uniformity_metric

        if self.supervision == "scored":
            return score_metrics()
        if len(self.roles) == 1:
            return uniformity_metric()
        return retrieval_metrics(negatives=self.supervision == "triplets")

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[Prediction]:
        """Return the `embedding` of each row of vectors (B, D), as numbers."""
        return [{"embedding": row} for row in output.float().tolist()]

    def state_dict(self) -> StateDict:
        return {**self.texts.state_dict(), "num_train": self.num_train, **self.similarity_target.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.texts.load_state_dict(state)
        self.num_train = int(state["num_train"])
        self.similarity_target.load_state_dict(state)

    def _views(self, training: bool) -> tuple[str, ...]:
        """Return the encoded columns of a sample's K texts, in the order of their vectors."""
        if self.supervision == "none" and (training or not self.evaluate_pairs):
            return ("input_ids", "input_ids")
        return tuple(next(iter(_columns(role))) for role in self.roles)


def _columns(role: str) -> dict[str, str]:
    """Return the encoded columns of a role, the ids first, and their names in `Texts.encode`."""
    if role == "text":
        return {name: name for name in ("input_ids", "truncated", "unknown")}
    return {f"{role}_ids": "input_ids", f"{role}_truncated": "truncated", f"{role}_unknown": "unknown"}
