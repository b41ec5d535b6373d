"""One tag for each word."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import RowError, format_error
from trainer.protocols import Batch, Batching, Columns, Inputs, Target, TaskInfo
from trainer.task.answers import outputs_of_tokens
from trainer.task.classes import Classes
from trainer.task.entities import entity_spans, has_prefixes
from trainer.task.fingerprint import fingerprint
from trainer.task.texts import Texts

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

logger = logging.getLogger(__name__)


class TokenClassification:
    """Words in, one of K tags for each out.

    The tokenizer gets the words one by one, and the first token of a word carries its tag; the others have no target.
    Words past `max_length`, and words of which the tokenizer leaves nothing (control characters), have no output and
    are neither learnt nor scored; `check` says how many.

    Where a tag begins with `B-` or `I-`, tags mark entities (see `trainer.task.entities`) and `entity_f1` picks the
    best checkpoint. Else each tag is of one word, and `macro_f1` does, F1 of each tag averaged over the tags.

    Args:
        max_length: Tokens of a sample, special ones included; longer ones are cut.
        vocab_size: Entries of a vocabulary learnt from the training words.
        tokenizer: A `tokenizer.json` or its folder; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.
    """

    monitor = "entity_f1"
    monitors = ("accuracy", "entity_f1", "entity_precision", "entity_recall", "macro_f1")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("words", "tags")
    level = "token"

    def __init__(self, *, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.classes = Classes()

    def columns(self) -> tuple[str, ...]:
        return ("words", "tags")

    def input_columns(self) -> tuple[str, ...]:
        return ("words",)

    def fingerprint(self) -> str:
        return fingerprint("token_classification/2", *self.texts.key())

    def fit(self, train: Dataset) -> None:
        """Takes the tags and their counts, over all words, from the training split, and learns the vocabulary.

        Raises:
            DataError: There are fewer than two tags.
        """
        tags = train.select_columns("tags").iter(10_000)
        self.classes.learn(chain.from_iterable(row for batch in tags for row in batch["tags"]), at_least=2, role="tags")
        words = train.select_columns("words").iter(1_000)
        self.texts.learn_from([" ".join(row) for row in batch["words"]] for batch in words)
        self._choose_monitor()

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """The columns of `encode_inputs` and `tags` (classes) of the words with an output.

        Raises:
            RowError: There are no words, or not as many tags, or a tag was never seen in training.
        """
        columns = self.encode_inputs(rows)
        wanted = []
        for position, (words, tags, read) in enumerate(zip(rows["words"], rows["tags"], columns["read"], strict=True)):
            if len(words) != len(tags):
                problem = f"must be one for each of the {len(words)} words"
                raise RowError(position, "tags", format_error("tags", problem, value=list(tags)))
            wanted.append([tags[word] for word in read])
        columns["tags"] = [np.array(classes, dtype=np.int32) for classes in self.classes.indices(wanted, "tags")]
        return columns

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        """Columns `input_ids`, `truncated`, `unknown`, and of the words with an output:

        `read` (which words they are), `first` (the place of each one's first token); `cut` counts the words without.

        Raises:
            RowError: There are no words.
        """
        for position, words in enumerate(rows["words"]):
            if not len(words):
                raise RowError(position, "words", format_error("words", "must be at least one", value=list(words)))
        encodings = self.texts.tokenizer.encode_batch([list(words) for words in rows["words"]], is_pretokenized=True)
        columns: dict[str, list[Any]] = {"read": [], "first": [], "cut": []}
        for words, encoding in zip(rows["words"], encodings, strict=True):
            first = {word: place for place, word in reversed([*enumerate(encoding.word_ids)]) if word is not None}
            columns["read"].append(np.array(sorted(first), dtype=np.int32))
            columns["first"].append(np.array([first[word] for word in sorted(first)], dtype=np.int32))
            columns["cut"].append(len(words) - len(first))
        return {**self.texts.columns(encodings), **columns}

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        """Logs what `Texts.check` does, the counts of the tags, and how many words have no output."""
        for split, rows in encoded.items():
            cut = int(rows.with_format("numpy")["cut"][:].sum())
            if cut:
                total = cut + int(self.texts.lengths(rows, "first").sum())
                message = "%s: %d of %d words do not fit into %d tokens and are neither learnt nor scored"
                logger.info(message, split, cut, total, self.texts.max_length)
        self.classes.tell(encoded, "tags")
        return self.texts.check(encoded)

    def lengths(self, encoded: Dataset) -> np.ndarray:
        return self.texts.lengths(encoded)

    def collate(self, rows: Columns, draws: SampleRng, batching: Batching) -> Batch:
        """Packed: outputs at the words alone, targets (B, W). Padded: outputs and targets (B, T). -100 elsewhere."""
        layout = self.texts.lay_out(rows["input_ids"], batching)
        wanted, target = layout.outputs_at(rows["first"], rows["tags"])
        inputs = {**self.texts.inputs(rows, layout), **wanted}
        return Batch(inputs, target, len(rows["input_ids"]), tuple(draws.ids))

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        """Packed: outputs at the words alone are asked for."""
        layout = self.texts.lay_out(encoded["input_ids"], batching)
        return {**self.texts.inputs(encoded, layout), **layout.asked(encoded["first"])}

    def info(self) -> TaskInfo:
        return TaskInfo(**self.texts.info_fields(), **self.classes.info_fields(), output_level="token")

    def metrics(self) -> MetricCollection:
        """Accuracy over words, and F1, precision and recall of entities or, without prefixes, F1 of each tag."""
        from torchmetrics import Metric, MetricCollection

        from trainer.task.entities_metric import EntityScore, TagF1
        from trainer.task.token_metric import TokenAccuracy

        tags = self.classes.labels
        metrics: dict[str, Metric | MetricCollection] = {"accuracy": TokenAccuracy()}
        if has_prefixes(tags):
            metrics["entity_f1"] = EntityScore(tags, "f1")
            metrics["entity_precision"] = EntityScore(tags, "precision")
            metrics["entity_recall"] = EntityScore(tags, "recall")
        else:
            metrics["macro_f1"] = TagF1(len(tags))
        return MetricCollection(metrics)

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        """For each row the `words` and their `tags`, None for a word that is not read.

        Where tags mark entities, also these: the `type`, and the words from `start` to before `end`.
        """
        labels = self.classes.labels
        answers: list[dict[str, Any]] = []
        found = outputs_of_tokens(output, encoded["first"], batching)
        for words, read, scores in zip(rows["words"], encoded["read"], found, strict=True):
            tags: list[str | None] = [None] * len(words)
            for word, number in zip(read.tolist(), scores.argmax(dim=-1).tolist(), strict=True):
                tags[word] = labels[number]
            answer = {"words": list(words), "tags": tags}
            answers.append(answer | ({"entities": entity_spans(tags)} if has_prefixes(labels) else {}))
        return answers

    def axes(self) -> dict[str, dict[int, str]]:
        return self.texts.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.texts.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self.texts.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        """`tags.json` and `tokenizer.json`."""
        return {"tags.json": self.classes.artifact_files()["labels.json"], **self.texts.artifact_files()}

    def state_dict(self) -> dict[str, Any]:
        return {**self.classes.state_dict(), **self.texts.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.classes.load_state_dict(state)
        self.texts.load_state_dict(state)
        self._choose_monitor()

    def _choose_monitor(self) -> None:
        self.monitor = "entity_f1" if has_prefixes(self.classes.labels) else "macro_f1"
