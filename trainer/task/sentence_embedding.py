"""Texts as vectors, near together where the texts mean the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch

from trainer.errors import format_error, raise_if_any
from trainer.protocols import Batch, Batching, Columns, Inputs, Target, TaskInfo
from trainer.task.fingerprint import fingerprint
from trainer.task.scores import Scores
from trainer.task.texts import Texts

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

logger = logging.getLogger(__name__)

Supervision = Literal["none", "pairs", "triplets", "scored"]

_TEXTS: dict[Supervision, tuple[str, ...]] = {
    "none": ("text",),
    "pairs": ("text", "positive"),
    "triplets": ("text", "positive", "negative"),
    "scored": ("text", "text_pair"),
}
_MONITORS: dict[Supervision, str] = {"none": "loss", "pairs": "mrr", "triplets": "mrr", "scored": "spearman"}


class SentenceEmbedding:
    """Text in, a vector out; each sample of a batch is K texts, whose vectors lie one after the other.

    What tells it which texts mean the same is `supervision`:

    * `none`: nothing. Each text is twice in a training batch, one copy behind the other, and the model's dropout makes
      two views of it (unsupervised SimCSE). Without dropout they are equal, and only the negatives teach.
    * `pairs`: a text and its positive;
    * `triplets`: a text, its positive and a hard negative;
    * `scored`: a text, a second one, and how alike they are. The target is a `similarity`, for a loss such as
      `cosine_embedding`; that of the others is `views`, for one such as `info_nce`.

    Source: Gao et al. 2021, https://arxiv.org/abs/2104.08821; Reimers and Gurevych 2019,
    https://arxiv.org/abs/1908.10084.

    Args:
        supervision: What says which texts mean the same.
        evaluate_pairs: With `none`: each text is evaluated against its positive, which training never reads.
        threshold: With `scored`: the similarity is 1 for a score of at least that, else -1; None: the training scores'
            range is mapped to [-1, 1], so two scores become -1 and 1 (see `Scores`).
        dim: Width of a vector, by a projection; None: the model's features as they are.
        max_length: Tokens of a text, special ones included; longer texts are cut.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a name on the hub; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.

    Raises:
        ConfigError: A value is out of range or does not go with the supervision, or there is no such tokenizer.
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
    # No literal: it follows from the supervision, so what is read before torch is loaded must not say one or the other.
    target: Target
    inputs: Inputs = "tokens"
    script = ("texts", "embeddings")

    def __init__(
        self,
        *,
        supervision: Literal["none", "pairs", "triplets", "scored"],
        evaluate_pairs: bool,
        threshold: float | None,
        dim: int | None,
        max_length: int,
        vocab_size: int,
        tokenizer: str | None,
        lowercase: bool,
    ) -> None:
        faults = []
        if supervision not in _TEXTS:
            problem = f"must be one of {', '.join(get_args(Supervision))}"
            faults.append(format_error("supervision", problem, value=supervision))
        if evaluate_pairs and supervision != "none":
            problem = f"is for supervision=none; supervision={supervision} is evaluated as it is trained"
            faults.append(format_error("evaluate_pairs", problem, value=evaluate_pairs))
        if threshold is not None and supervision != "scored":
            problem = f"is for supervision=scored; supervision={supervision} reads no scores"
            faults.append(format_error("threshold", problem, value=threshold))
        if dim is not None and dim < 1:
            faults.append(format_error("dim", "must be at least 1, or null", value=dim))
        raise_if_any(*faults)
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.supervision = supervision
        self.evaluate_pairs = evaluate_pairs
        self.scores = Scores(threshold)
        self.dim = dim
        self.target = "similarity" if supervision == "scored" else "views"
        self.monitor = "mrr" if evaluate_pairs else _MONITORS[supervision]
        self.num_train = 0

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles of the texts that are read."""
        return _TEXTS["pairs"] if self.evaluate_pairs else _TEXTS[self.supervision]

    def input_columns(self) -> tuple[str, ...]:
        return ("text",)

    def columns(self) -> tuple[str, ...]:
        return (*self.roles, "score") if self.supervision == "scored" else self.roles

    def fingerprint(self) -> str:
        settings = (self.supervision, self.evaluate_pairs, self.scores.threshold)
        return fingerprint("sentence_embedding/1", *settings, *self.texts.key())

    def fit(self, train: Dataset) -> None:
        """Learns the vocabulary from the texts to train on, and the range of their scores.

        Raises:
            DataError: All pairs are equally alike.
        """
        self.num_train = len(train)
        if self.supervision == "scored":
            self.scores.learn(train)
        self.texts.learn(train, _TEXTS[self.supervision])

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `input_ids`, `truncated`, `unknown`, those of other roles as `positive_ids`, and so on; `similarity`.

        Raises:
            RowError: A score is not finite.
        """
        columns = self.encode_inputs(rows)
        for role in self.roles[1:]:
            found = self.texts.encode(rows[role])
            columns |= {name: found[source] for name, source in _columns(role).items()}
        if self.supervision == "scored":
            columns["similarity"] = self.scores.encode(rows["score"])
        return columns

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        return self.texts.encode(rows["text"])

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        """Logs what `Texts.check` does for each role, and where similarities are not -1 and 1 alone."""
        warnings = []
        for split, rows in encoded.items():
            for role in self.roles:
                names = _columns(role)
                warnings += self.texts.check(
                    {f"{split}, {role}": rows.select_columns(list(names)).rename_columns(names)}
                )
        if self.supervision == "scored" and (np.abs(encoded["train"]["similarity"]) != 1).any():
            assert self.scores.range is not None
            told = "scores of %g to %g become similarities of -1 to 1; for a loss of -1 and 1 alone set task.threshold"
            logger.info(told, *self.scores.range)
        return warnings

    def lengths(self, encoded: Dataset) -> np.ndarray:
        """Tokens of all views of each row in training."""
        lengths: np.ndarray = np.sum([self.texts.lengths(encoded, view) for view in self._views(training=True)], axis=0)
        return lengths

    def collate(self, rows: Columns, draws: SampleRng, batching: Batching) -> Batch:
        views = [rows[name] for name in self._views(draws.training)]
        samples = [sample[row] for row in range(len(draws.ids)) for sample in views]
        inputs = self.model_inputs({"input_ids": samples}, batching)
        if self.supervision == "scored":
            target = self.scores.target(rows["similarity"])
        else:
            target = torch.tensor(draws.ids, dtype=torch.int64)[:, None].repeat(1, len(views))
        return Batch(inputs, target, len(target), tuple(draws.ids))

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        return self.texts.model_inputs(encoded, batching)

    def info(self) -> TaskInfo:
        return TaskInfo(**self.texts.info_fields(), num_outputs=self.dim, num_train=self.num_train)

    def metrics(self) -> MetricCollection:
        """By supervision: how the positives are found again; how cosines follow scores; how texts alone are spread."""
        from trainer.task.similarity import retrieval_metrics, score_metrics, uniformity_metric

        if self.supervision == "scored":
            return score_metrics()
        if len(self.roles) == 1:
            return uniformity_metric()
        return retrieval_metrics(negatives=self.supervision == "triplets")

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        """For each row of vectors (B, D) the `embedding`, numbers."""
        return [{"embedding": row} for row in output.float().tolist()]

    def axes(self) -> dict[str, dict[int, str]]:
        return self.texts.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.texts.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self.texts.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        return self.texts.artifact_files()

    def state_dict(self) -> dict[str, Any]:
        return {**self.texts.state_dict(), "num_train": self.num_train, **self.scores.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.texts.load_state_dict(state)
        self.num_train = int(state["num_train"])
        self.scores.load_state_dict(state)

    def _views(self, training: bool) -> tuple[str, ...]:
        """The columns of a sample's K texts, in the order of their vectors."""
        if self.supervision == "none" and (training or not self.evaluate_pairs):
            return ("input_ids", "input_ids")
        return tuple(next(iter(_columns(role))) for role in self.roles)


def _columns(role: str) -> dict[str, str]:
    """The encoded columns of a role, the tokens first, and what they are called in `Texts.encode`."""
    if role == "text":
        return {name: name for name in ("input_ids", "truncated", "unknown")}
    return {f"{role}_ids": "input_ids", f"{role}_truncated": "truncated", f"{role}_unknown": "unknown"}
