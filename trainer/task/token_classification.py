"""Tag words: one class per word."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from trainer.constraints import HubPath, validated
from trainer.display import counted
from trainer.errors import RowError, format_error
from trainer.files.mapped import MappedRows, as_array, read_chunks
from trainer.layout import TRANSITIONS
from trainer.protocols import Batch, Batching, Columns, EncodedColumns, Inputs, Prediction, StateDict, Target, TaskInfo
from trainer.shapes import to_json
from trainer.tags import (
    TagTransitions,
    decode_tags,
    follows_scheme,
    forbid_transitions,
    no_transitions,
    parse_transitions,
    sum_sequences,
)
from trainer.task.class_targets import Classes
from trainer.task.entities import entity_probabilities, entity_spans, has_prefixes
from trainer.task.packing import select_token_outputs
from trainer.task.supervised import fingerprint
from trainer.task.texts import MaxLength, Texts, TextTask, VocabSize

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

logger = logging.getLogger(__name__)


class TokenClassification(TextTask):
    """Predict one of K tags for each word.

    The tokenizer gets the words one by one, and the first token of a word carries its tag; its other tokens have no
    target. Words past `max_length`, and words that the tokenizer drops entirely (control characters), have no
    output and are neither trained on nor scored; `check` logs their number.

    If a tag begins with `B-` or `I-`, tags mark entities (see `trainer.task.entities`) and `entity_f1` picks the best
    checkpoint. Otherwise each tag belongs to one word, and `macro_f1`, the mean F1 of the tags, picks it.

    Args:
        max_length: Tokens of a sample, special tokens included; longer samples are truncated.
        vocab_size: Entries of a vocabulary trained on the training words.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.
    """

    monitor = "entity_f1"
    monitors = ("accuracy", "entity_f1", "entity_precision", "entity_recall", "macro_f1")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("words", "tags")
    level = "token"
    tags_sequences = True

    @validated()
    def __init__(
        self, *, max_length: MaxLength, vocab_size: VocabSize, tokenizer: HubPath | None, lowercase: bool
    ) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.classes = Classes()
        self.transitions: TagTransitions | None = None

    def columns(self) -> tuple[str, ...]:
        return ("words", "tags")

    def input_columns(self) -> tuple[str, ...]:
        return ("words",)

    def fingerprint(self) -> str:
        return fingerprint("token_classification/2", *self.texts.fingerprint_parts())

    def fit(self, train: Dataset) -> None:
        """Collect the tags of all words of the training split and their counts, and train the vocabulary.

        Raises:
            DataError: There are fewer than two tags.
        """
        tags = train.select_columns("tags").iter(10_000)
        self.classes.fit(chain.from_iterable(row for batch in tags for row in batch["tags"]), at_least=2, role="tags")
        words = train.select_columns("words").iter(1_000)
        self.texts.fit_texts([" ".join(row) for row in batch["words"]] for batch in words)
        self._choose_monitor()

    def encode(self, rows: Columns) -> EncodedColumns:
        """Return the columns of `encode_inputs`, and `tags`: the classes of the words that have an output.

        Raises:
            RowError: A row has no words, or another number of tags, or a tag that does not occur in training.
        """
        columns = self.encode_inputs(rows)
        read_tags = []
        for position, (words, tags, read) in enumerate(zip(rows["words"], rows["tags"], columns["read"], strict=True)):
            if len(words) != len(tags):
                problem = f"must be one for each of {counted(len(words), 'word')}"
                raise RowError(position, "tags", format_error("tags", problem, value=list(tags)))
            read_tags.append([tags[word] for word in read])
        columns["tags"] = [np.array(classes, dtype=np.int32) for classes in self.classes.indices(read_tags, "tags")]
        return columns

    def encode_inputs(self, rows: Columns) -> EncodedColumns:
        """Return the columns `input_ids`, `truncated`, `unknown`, and the words that have an output.

        `read` has the positions of these words, `first` the offset of the first token of each, and `cut` the number of
        the other words.

        Raises:
            RowError: A row has no words.
        """
        for position, words in enumerate(rows["words"]):
            if not len(words):
                raise RowError(position, "words", format_error("words", "must not be empty", value=list(words)))
        encodings = self.texts.tokenizer.encode_batch([list(words) for words in rows["words"]], is_pretokenized=True)
        columns: EncodedColumns = {"read": [], "first": [], "cut": []}
        for words, encoding in zip(rows["words"], encodings, strict=True):
            first = {word: offset for offset, word in reversed([*enumerate(encoding.word_ids)]) if word is not None}
            columns["read"].append(np.array(sorted(first), dtype=np.int32))
            columns["first"].append(np.array([first[word] for word in sorted(first)], dtype=np.int32))
            columns["cut"].append(len(words) - len(first))
        return {**self.texts.token_columns(encodings), **columns}

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Log the counts of the tags, the words without an output, and tags that break their scheme.

        Returns:
            Warnings about the tags and the texts.
        """
        for split, rows in encoded.items():
            cut = sum(int(as_array(chunk["cut"]).sum()) for chunk in read_chunks(rows, "cut"))
            if cut:
                words = counted(cut, "word", "does", of=cut + int(self.texts.lengths(rows, "first").sum()))
                message = "%s: %s not fit into %d tokens; training and scores leave them out"
                logger.info(message, split, words, self.texts.max_length)
        self._log_broken_scheme(encoded)
        return [*self.classes.check(encoded, "tags"), *self.texts.check(encoded)]

    def _log_broken_scheme(self, encoded: Mapping[str, MappedRows]) -> None:
        """Log how many tags may not follow the tag before them, if the tags are of a scheme."""
        labels = self.classes.labels
        if not follows_scheme(labels):
            return
        # A row and a column more for the start of a sentence. Its end is free: it may be truncated.
        low = forbid_transitions(labels)
        is_forbidden = np.pad((low.between < 0).numpy(), ((0, 1), (0, 0)))
        is_forbidden[-1] = (low.start < 0).numpy()
        for split, rows in encoded.items():
            counts = np.zeros_like(is_forbidden, dtype=np.int64)
            for chunk in read_chunks(rows, "tags"):
                values = chunk["tags"].combine_chunks()
                tags, lengths = as_array(values.flatten()), as_array(values.value_lengths())
                before = np.roll(tags, 1)
                before[(lengths.cumsum() - lengths)[lengths > 0]] = len(labels)
                np.add.at(counts, (before, tags), is_forbidden[before, tags])
            if number := int(counts.sum()):
                earlier, tag = divmod(int(counts.argmax()), len(labels))
                place = f"after {labels[earlier]}" if earlier < len(labels) else "at the start of a sentence"
                message = "%s: %s their scheme, most often %s %s; loss.constraints=true never predicts them so"
                logger.info(message, split, counted(number, "tag", "breaks"), labels[tag], place)

    def collate(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        """Make a batch. Packed: outputs only at the words, targets (B, W). Padded: outputs and targets (B, T)."""
        layout = self.texts.lay_out(rows["input_ids"], batching)
        request, target = layout.request_targets(rows["first"], rows["tags"])
        inputs = {**self.texts.inputs_in_layout(rows, layout), **request}
        return Batch(inputs, target, len(rows["input_ids"]), tuple(rng.ids))

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        """Make the model's inputs; packed inputs request outputs only at the words."""
        layout = self.texts.lay_out(encoded["input_ids"], batching)
        return {**self.texts.inputs_in_layout(encoded, layout), **layout.request_outputs(encoded["first"])}

    def info(self) -> TaskInfo:
        return TaskInfo(**self.texts.info_fields(), **self.classes.info_fields(), output_level="token")

    def metrics(self) -> MetricCollection:
        """Return accuracy over words, and F1, precision and recall of entities or, without prefixes, F1 of the tags."""
        from torchmetrics import Metric, MetricCollection

        from trainer.task.classification_metrics import ClassCounts, EntityScore, TokenAccuracy, f1_of_tags

        tags = self.classes.labels
        metrics: dict[str, Metric | MetricCollection] = {"accuracy": TokenAccuracy()}
        if has_prefixes(tags):
            metrics["entity_f1"] = EntityScore(tags, "f1")
            metrics["entity_precision"] = EntityScore(tags, "precision")
            metrics["entity_recall"] = EntityScore(tags, "recall")
        else:
            metrics["macro_f1"] = ClassCounts(len(tags), f1_of_tags)
        return MetricCollection(metrics)

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[Prediction]:
        """Return the `words` of each row and their `tags`, None for a word that was not read.

        With `transitions`, the tags are the best sequence of tags; otherwise each is the best tag of its word. If tags
        mark entities, also `entities`: the `type`, the words from `start` up to before `end`, and the `probability`
        of the entity among all sequences of tags.
        """
        labels = self.classes.labels
        outputs = select_token_outputs(output, encoded["first"], batching)
        decoded = self._decode(outputs)
        rows_tags: list[list[str | None]] = []
        for words, read, scores in zip(rows["words"], encoded["read"], decoded, strict=True):
            tags: list[str | None] = [None] * len(words)
            for word, index in zip(read.tolist(), scores.argmax(dim=-1).tolist(), strict=True):
                tags[word] = labels[index]
            rows_tags.append(tags)
        answers = [{"words": list(words), "tags": tags} for words, tags in zip(rows["words"], rows_tags, strict=True)]
        if not has_prefixes(labels):
            return answers
        chains = sum_sequences(outputs, self.transitions or no_transitions(len(labels)))
        predictions: list[Prediction] = []
        for answer, tags, sums in zip(answers, rows_tags, chains, strict=True):
            entities = entity_spans(tags)
            probabilities = entity_probabilities(entities, tags, labels, sums)
            rated = [
                {**entity, "probability": round(probability, 6)}
                for entity, probability in zip(entities, probabilities, strict=True)
            ]
            predictions.append({**answer, "entities": rated})
        return predictions

    def _decode(self, outputs: list[Tensor]) -> list[Tensor]:
        """Return scores (W, C) of the words of each sample in which the predicted tag is the largest."""
        if self.transitions is None:
            return outputs
        is_word = pad_sequence([scores.new_ones(len(scores), dtype=torch.bool) for scores in outputs], batch_first=True)
        decoded = decode_tags(pad_sequence(outputs, batch_first=True), is_word, self.transitions)
        return [scores[: len(own)] for scores, own in zip(decoded, outputs, strict=True)]

    def artifact_files(self) -> dict[str, str]:
        """Return `tags.json` and `tokenizer.json`; with `transitions` also `transitions.json`."""
        files = {"tags.json": self.classes.artifact_files()["labels.json"], **self.texts.artifact_files()}
        if self.transitions is not None:
            files[TRANSITIONS] = to_json(self.transitions.document()) + "\n"
        return files

    def state_dict(self) -> StateDict:
        transitions = {} if self.transitions is None else {"transitions": self.transitions.document()}
        return {**self.classes.state_dict(), **self.texts.state_dict(), **transitions}

    def load_state_dict(self, state: StateDict) -> None:
        self.classes.load_state_dict(state)
        self.texts.load_state_dict(state)
        if "transitions" in state:
            self.transitions = parse_transitions(state["transitions"], len(self.classes.labels))
        self._choose_monitor()

    def _choose_monitor(self) -> None:
        self.monitor = "entity_f1" if has_prefixes(self.classes.labels) else "macro_f1"
