"""Find the spans of a text that have a class, such as entities that may be in each other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch

from trainer.constraints import HubPath, validated
from trainer.display import counted
from trainer.errors import RowError, format_error
from trainer.files.mapped import MappedRows, as_array, read_chunks
from trainer.protocols import Batch, Batching, Columns, EncodedColumns, Inputs, Prediction, StateDict, Target, TaskInfo
from trainer.spans import list_spans, pack_spans
from trainer.task.class_targets import Classes
from trainer.task.supervised import fingerprint
from trainer.task.texts import MaxLength, Texts, TextTask, VocabSize

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

logger = logging.getLogger(__name__)

SpanEnd = Literal["exclusive", "inclusive"]

_OTHER_END: Final[dict[SpanEnd, SpanEnd]] = {"exclusive": "inclusive", "inclusive": "exclusive"}
_MAX_UNALIGNED = 0.05
"""A larger share of spans whose boundaries are inside of tokens is a warning."""


class SpanClassification(TextTask):
    """Predict which spans of a text have which of C classes; spans may overlap, and be in each other.

    A span begins and ends at the boundaries of tokens. Spans with a boundary inside of a token, and spans beyond
    `max_length`, cannot be predicted, and are neither trained on nor scored; `check` logs their number. Spaces at the
    ends of a span do not count.

    A predicted span is right if its class, its first and its last token are. `entity_f1`, over the spans of all
    classes, picks the best checkpoint.

    Args:
        max_length: Tokens of a text, special tokens included; longer texts are truncated.
        vocab_size: Entries of a vocabulary trained on the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.
        span_end: The `end` of a span in the data: `exclusive` is the place after its last character, `inclusive` the
            place of this character. Predictions are always exclusive.
    """

    monitor = "entity_f1"
    monitors = ("entity_f1", "entity_precision", "entity_recall", "macro_f1")
    target: Target = "spans"
    inputs: Inputs = "tokens"
    script = ("spans", "spans")
    level = "token"

    @validated()
    def __init__(
        self,
        *,
        max_length: MaxLength,
        vocab_size: VocabSize,
        tokenizer: HubPath | None,
        lowercase: bool,
        span_end: SpanEnd,
    ) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.classes = Classes()
        self.span_end = span_end

    def columns(self) -> tuple[str, ...]:
        return ("text", "spans")

    def input_columns(self) -> tuple[str, ...]:
        return ("text",)

    def fingerprint(self) -> str:
        return fingerprint("span_classification/1", *self.texts.fingerprint_parts(), self.span_end)

    def fit(self, train: Dataset) -> None:
        """Collect the labels of all spans of the training split and their counts, and train the vocabulary.

        Raises:
            DataError: There are no spans.
        """
        rows = chain.from_iterable(batch["spans"] for batch in train.select_columns("spans").iter(10_000))
        self.classes.fit((span["label"] for spans in rows for span in spans), at_least=1, role="spans")
        self.texts.fit(train, ("text",))

    def encode(self, rows: Columns) -> EncodedColumns:
        """Return the columns of `encode_inputs`, and the spans that tokens can express.

        `spans` has first token, last token and class of each, one after the other, and `span_classes` the classes.
        `cut` counts the spans beyond the last token, `unaligned` those with a boundary inside of a token, and
        `fits_other` those that only the other value of `span_end` would align.

        Raises:
            RowError: A span has no characters, is beyond its text, or has a label that does not occur in training.
        """
        columns = self.encode_inputs(rows)
        labels = [[span["label"] for span in spans] for spans in rows["spans"]]
        columns |= {name: [] for name in ("spans", "span_classes", "cut", "unaligned", "fits_other")}
        texts = zip(rows["text"], rows["spans"], self.classes.indices(labels, "spans"), strict=True)
        for position, (text, spans, classes) in enumerate(texts):
            tokens = _TokenPlaces(text, columns["starts"][position], columns["ends"][position])
            places: set[tuple[int, int, int]] = set()
            counts = {"cut": 0, "unaligned": 0, "fits_other": 0}
            for span, index in zip(spans, classes, strict=True):
                start, end = self._characters(position, text, span)
                if (place := tokens.find(start, end)) is not None:
                    places.add((*place, index))
                elif tokens.is_cut(end):
                    counts["cut"] += 1
                else:
                    counts["unaligned"] += 1
                    shift = 1 if self.span_end == "exclusive" else -1
                    counts["fits_other"] += tokens.find(start, end + shift) is not None
            flat = np.array(sorted(places), dtype=np.int32).reshape(-1, 3)
            columns["spans"].append(flat.ravel())
            columns["span_classes"].append(flat[:, 2])
            for name, count in counts.items():
                columns[name].append(count)
        return columns

    def _characters(self, position: int, text: str, span: Mapping[str, Any]) -> tuple[int, int]:
        """Return the start of a span and the place after its end."""
        start, end = span["start"], span["end"] + (self.span_end == "inclusive")
        if start < end <= len(text):
            return start, end
        if end > len(text):
            problem = f"a span ends beyond its text of {len(text)} characters"
            other = self.span_end == "inclusive" and end - 1 <= len(text)
        else:
            problem = "a span has no characters"
            other = self.span_end == "exclusive" and start == end
        remedy = "Places are counted in characters, from 0"
        if other:
            remedy = f"Set task.span_end={_OTHER_END[self.span_end]} if the data counts the last character otherwise"
        shown = [span["start"], span["end"], span["label"]]
        raise RowError(position, "spans", format_error("spans", problem, remedy, value=shown))

    def encode_inputs(self, rows: Columns) -> EncodedColumns:
        """Return the columns `input_ids`, `truncated`, `unknown`, and the `starts` and `ends` of the tokens.

        These are characters of the text, -1 for a token that is no part of it.
        """
        texts = list(rows["text"])
        encodings = self.texts.tokenizer.encode_batch(texts)
        columns: EncodedColumns = {**self.texts.token_columns(encodings), "starts": [], "ends": []}
        for text, encoding in zip(texts, encodings, strict=True):
            places = np.array([strip_spaces(text, *offsets) for offsets in encoding.offsets], dtype=np.int32)
            places = places.reshape(-1, 2)
            places[(places[:, 0] >= places[:, 1]) | np.array(encoding.special_tokens_mask, dtype=bool)] = -1
            columns["starts"].append(places[:, 0])
            columns["ends"].append(places[:, 1])
        return columns

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Log the counts of the classes and the spans that cannot be predicted.

        Returns:
            Warnings about the spans, the labels and the texts.
        """
        warnings = []
        for split, rows in encoded.items():
            names = ("cut", "unaligned", "fits_other")
            counts = dict.fromkeys((*names, "kept"), 0)
            for chunk in read_chunks(rows, *names, "span_classes"):
                for name in names:
                    counts[name] += int(as_array(chunk[name]).sum())
                counts["kept"] += len(chunk["span_classes"].combine_chunks().flatten())
            total = counts["kept"] + counts["cut"] + counts["unaligned"]
            if counts["cut"]:
                message = "%s: %s not fit into %d tokens; training and scores leave them out"
                logger.info(message, split, counted(counts["cut"], "span", "does", of=total), self.texts.max_length)
            if counts["unaligned"]:
                spans = counted(counts["unaligned"], "span", "is", of=total)
                text = f"{split}: {spans} neither trained on nor scored: they begin or end inside of a token"
                if 2 * counts["fits_other"] > counts["unaligned"]:
                    other = _OTHER_END[self.span_end]
                    text += f". Set task.span_end={other}, with which {counts['fits_other']} of them fit"
                if counts["unaligned"] > _MAX_UNALIGNED * total:
                    warnings.append(text)
                else:
                    logger.info(text)
        return [*warnings, *self.classes.check(encoded, "span_classes", "spans"), *self.texts.check(encoded)]

    def collate(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        """Make a batch with outputs and targets of all tokens of each sample, (B, T, D) and (B, T, M)."""
        inputs = self.model_inputs(rows, batching)
        width = inputs["output_index" if "output_index" in inputs else "input_ids"].shape[1]
        target = pack_spans(
            [np.asarray(spans).reshape(-1, 3) for spans in rows["spans"]],
            [np.asarray(starts) >= 0 for starts in rows["starts"]],
            width=width,
            num_classes=len(self.classes.labels),
        )
        return Batch(inputs, target, len(target), tuple(rng.ids))

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        """Make the model's inputs; packed inputs request the outputs of each sample in a row of its own."""
        layout = self.texts.lay_out(encoded["input_ids"], batching)
        inputs = self.texts.inputs_in_layout(encoded, layout)
        return {**inputs, "output_index": layout.index()} if layout.packed else inputs

    def info(self) -> TaskInfo:
        return TaskInfo(**self.texts.info_fields(), **self.classes.info_fields(), output_level="token")

    def metrics(self) -> MetricCollection:
        """Return F1, precision and recall of spans over all classes, and the mean F1 of the classes."""
        from trainer.task.classification_metrics import span_metrics

        return span_metrics(len(self.classes.labels))

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[Prediction]:
        """Return the `text` of each row and its `entities` in the order of the text, longer ones first.

        An entity has a `type`, the characters from `start` up to before `end`, their `text`, and as `probability` the
        sigmoid of its score.
        """
        predictions: list[Prediction] = []
        texts = zip(rows["text"], encoded["starts"], encoded["ends"], output.cpu(), strict=True)
        for text, starts, ends, scores in texts:
            size = len(starts)
            is_token = np.asarray(starts) >= 0
            possible = np.triu(is_token[:, None] & is_token)
            scores = scores[:, :size, :size].masked_fill(~torch.from_numpy(possible), -torch.inf)
            scores_by_place: dict[tuple[int, int, int], float] = {}
            for first, last, index in list_spans(scores > 0):
                # Several tokens may be parts of one character.
                place, score = (int(starts[first]), -int(ends[last]), index), float(scores[index, first, last])
                scores_by_place[place] = max(score, scores_by_place.get(place, 0.0))
            entities = [
                {"type": self.classes.labels[index], "start": start, "end": -end, "text": text[start:-end]}
                | {"probability": round(float(1 / (1 + np.exp(-score))), 6)}
                for (start, end, index), score in sorted(scores_by_place.items())
            ]
            predictions.append({"text": text, "entities": entities})
        return predictions

    def artifact_files(self) -> dict[str, str]:
        return {**self.classes.artifact_files(), **self.texts.artifact_files()}

    def state_dict(self) -> StateDict:
        return {**self.classes.state_dict(), **self.texts.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self.classes.load_state_dict(state)
        self.texts.load_state_dict(state)


class _TokenPlaces:
    """The tokens of a text by the characters at which they begin and end.

    Args:
        text: The text.
        starts: The first character of each token, -1 for a token that is no part of the text.
        ends: The character after each token.
    """

    def __init__(self, text: str, starts: Sequence[int], ends: Sequence[int]) -> None:
        self._text = text
        places = [(int(start), int(end)) for start, end in zip(starts, ends, strict=True)]
        # Several tokens may be parts of one character: a span has all of them.
        self._first = {start: index for index, (start, _) in reversed([*enumerate(places)]) if start >= 0}
        self._last = {end: index for index, (_, end) in enumerate(places) if end >= 0}
        self._end = max((end for _, end in places), default=0)

    def find(self, start: int, end: int) -> tuple[int, int] | None:
        """Return the first and the last token of the characters from `start` up to before `end`, if there are such."""
        start, end = strip_spaces(self._text, start, end)
        first, last = self._first.get(start), self._last.get(end)
        return None if first is None or last is None or first > last else (first, last)

    def is_cut(self, end: int) -> bool:
        """Return whether a span ends after the last token."""
        return end > self._end


def strip_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the places without white space at the ends; some tokenizers count the space before a word to it."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
