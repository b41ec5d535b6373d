"""The contracts between the parts. There is nothing to inherit: any object with these members fits.

Shapes: B samples of a micro-batch, R rows and L columns of a packed or padded micro-batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict, runtime_checkable

from trainer.layout import Document

if TYPE_CHECKING:
    import numpy as np
    import torch
    from datasets import Dataset
    from torch import Tensor, nn
    from torchmetrics import MetricCollection

    from trainer.decision import DecisionRule
    from trainer.files.mapped import MappedRows
    from trainer.sample_rng import SampleRng
    from trainer.tags import TagTransitions

Batching = Literal["packed", "full_rows", "padded", "bucketed", "fixed"]
Columns = Mapping[str, Sequence[Any]]
"""A slice of a table: one sequence per column, all of the same length."""

Row = Mapping[str, Any]
"""A row of a table: a value per column."""


class ImageCell(TypedDict):
    bytes: bytes | None
    path: str | None


"""An encoded image, in memory or in its file, in the layout of the datasets library."""

EncodedColumns = dict[str, list[Any]]
"""Encoded rows: one list per column, all of the same length."""

Prediction = dict[str, Any]
"""One JSON object per predicted row; `Task.predictions` lists the keys."""

StateDict = dict[str, Any]
"""State of a part, by name."""

BLOCK_OF = "block_of"
"""The column of encoded rows with the position of the raw row that each is a block of, if a raw row has several."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        inputs: The model's keyword arguments.
        target: The tensor that the loss compares the output with; None if the task has no target.
        num_samples: The number of samples, B.
        ids: The positions of the samples in their split, for messages.
        piece: The position of this micro-batch among all that form its step, on whichever device they run.
        scale: Mean and standard deviation of each channel if `pixel_values` are bytes (B, H, W, C), which `to` turns
            into standardized images (B, C, H, W): a quarter of the bytes is copied. None changes nothing.
    """

    inputs: dict[str, Tensor]
    target: Tensor | None
    num_samples: int
    ids: tuple[int, ...]
    piece: int = 0
    scale: tuple[Tensor, Tensor] | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens that are not padding; 0 if the samples are no texts. It waits for a batch on a GPU."""
        mask = self.inputs.get("sequence_ids", self.inputs.get("attention_mask"))
        return 0 if mask is None or not self.num_samples else int(mask.count_nonzero())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`; from pinned memory, the copy overlaps with the host's work."""
        tensors = [*self.inputs.values(), *([] if self.target is None else [self.target])]
        if self.scale is None and all(tensor.device == device for tensor in tensors):
            return self
        batch = self._apply(lambda tensor: tensor.to(device, non_blocking=True))
        if batch.scale is None:
            return batch
        mean, std = batch.scale
        # A tensor, because CUDA would multiply by the rounded inverse of a number.
        pixels = batch.inputs["pixel_values"].float() / mean.new_full(mean.shape, 255.0)
        images = ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()
        return replace(batch, inputs={**batch.inputs, "pixel_values": images}, scale=None)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (called by PyTorch's DataLoader)."""
        return self._apply(lambda tensor: tensor.pin_memory())

    def _apply(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs = {name: change(tensor) for name, tensor in self.inputs.items()}
        target = None if self.target is None else change(self.target)
        scale = None if self.scale is None else (change(self.scale[0]), change(self.scale[1]))
        return replace(self, inputs=inputs, target=target, scale=scale)


@runtime_checkable
class Stateful(Protocol):
    """A part that changes during a run: its state is saved in checkpoints and restored on resume."""

    def state_dict(self) -> StateDict:
        """Return the state."""
        ...

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what `state_dict` returned."""
        ...


Target = Literal["class", "shares", "multi_hot", "values", "views", "similarity", "spans"]
"""The type of a batch's target, with the output that it is compared with:

* `class`: int64 (...,), output (..., C);
* `shares`: the share of each class, at least 0 and 1 in total, float32 (B, C), output (B, C);
* `multi_hot`: 0 or 1 for each label, float32 (B, C), output (B, C);
* `values`: float32 (B, V), output (B, V);
* `views`: int64 (B, K), the sample's number: the output (B * K, D) has K vectors per sample, sample by sample, the
  anchor first, then the positive, then hard negatives;
* `similarity`: -1 or 1, float32 (B,), output (2 * B, D): the two vectors of each sample, sample by sample;
* `spans`: int64 (B, T, M), the spans of tokens in each sample as `trainer.spans` describes, output (B, T, D), a vector
  for each token, from which the loss makes scores (B, C, T, T).
"""


Inputs = Literal["tokens", "features", "images"]
"""The inputs that a model reads:

* `tokens`: `input_ids` and what belongs to them, padded (`attention_mask`) or packed (`position_ids`, `sequence_ids`,
  `token_index` with a row for each sample; if all samples have one length, so that each is a row, `attention_mask`
  instead of `position_ids`); `output_index` of any shape selects the flattened positions that need outputs;
* `features`: `features`, float32 (B, F);
* `images`: `pixel_values`, float32 (B, channels, H, W).
"""


@runtime_checkable
class Loss(Protocol):
    """A loss is a sum over targets; the loop divides by the number of targets of the whole optimizer step.

    The number is counted over all micro-batches and all devices, so a loss needs to know neither. A device without a
    sample of its own may call it with the rows of another device's sample; the result is then multiplied by 0. A loss
    whose value is no sum over samples must fit `HasBatchStatistic`; otherwise each device would compute its own value.

    A loss may also fit `DeclaresTargets`, `ChecksTargets`, `IgnoresTargets`, `UsesInputs`, `HasLossHead`, `HasTeacher`,
    `SumsOverRows`, `HasRowTerms`, `HasTagTransitions`.
    """

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the targets: shape (), float32 (float64 for a float64 output)."""
        ...

    def num_targets(self, target: Tensor) -> Tensor:
        """Return the number of terms of the sum: int64, shape (), on the target's device (no host sync)."""
        ...


@runtime_checkable
class DeclaresTargets(Protocol):
    """A loss that declares which types of `Target` it supports.

    `targets` is a class attribute with a literal value: it is read from the source before torch is loaded.
    """

    targets: tuple[str, ...]


class NeedsSequences(Protocol):
    """A loss of sequences of tags: each row of its targets (B, T) must be a sequence, see `tags_sequences` of tasks.

    `needs_sequences` is a class attribute with a literal value, as `targets`.
    """

    needs_sequences: bool


@runtime_checkable
class ChecksTargets(Protocol):
    """A loss that checks each batch's targets on the host, before they reach a kernel."""

    def check(self, target: Tensor) -> None:
        """Raise RowError if the loss does not support a target."""
        ...


@runtime_checkable
class IgnoresTargets(Protocol):
    """A loss that leaves targets of this value out."""

    ignore_index: int


@runtime_checkable
class HalvesBatches(Protocol):
    """Batches that can be loaded again in halves, for when memory runs out."""

    def halves(self, batch: Batch) -> list[Batch]:
        """Return the samples of one of the batches as two batches."""
        ...


@runtime_checkable
class HasBatchStatistic(Protocol):
    """A loss that may be a statistic of the whole batch: its value is no sum of the values of the batch's samples.

    It returns its value times the number of targets. Every device calls it with the same rows, so it must use no random
    numbers; only a device's own rows pass a gradient on. Micro-batches of one device are not joined.

    So that jobs that need a sum are refused before torch is loaded, `is_batch_statistic` is a class attribute with a
    literal value, or the class attribute `statistic_by` lists the values of keys with which it is True.
    """

    is_batch_statistic: bool
    """True if it is: the rows of a micro-batch are then gathered from all devices before the loss is computed."""


@runtime_checkable
class UsesInputs(Protocol):
    """A loss that also reads the model's inputs: if `needs_inputs`, it is called as `loss(output, target, inputs)`."""

    needs_inputs: bool


@runtime_checkable
class HasLossHead(Protocol):
    """A loss with its own output layer: the model returns `in_features` features instead of class scores."""

    in_features: int

    def scores(self, output: Tensor) -> Tensor:
        """Return the class scores (..., C) of the features (..., D), for metrics, predictions and artifacts.

        Of spans, the scores are (B, C, T, T).
        """
        ...


@runtime_checkable
class HasTagTransitions(Protocol):
    """A loss that also scores transitions between tags: the best sequence of tags is then the answer."""

    def tag_transitions(self) -> TagTransitions:
        """Return the scores of transitions, detached copies in float32."""
        ...


@runtime_checkable
class SumsOverRows(Protocol):
    """A loss that is a sum over rows of class scores if `sums_over_rows`: it may then get them in chunks of rows."""

    sums_over_rows: bool


@runtime_checkable
class HasRowTerms(Protocol):
    """A loss that can say what each row adds to its sum, which takes less time than calling it row by row."""

    def row_terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the terms of the sum for B outputs and targets: (B,), or (B, ...) with several terms a row."""
        ...


@runtime_checkable
class HasTeacher(Protocol):
    """A loss that learns from another model, which is neither trained nor saved with it."""

    @property
    def teacher_model(self) -> Callable[[dict[str, Tensor]], Tensor]:
        """The teacher: model inputs by name to logits (..., C)."""
        ...


class Source(Protocol):
    """Raw data: splits of named columns (the group `data`)."""

    @property
    def fingerprint(self) -> str:
        """Digest that changes when the data changes; cheap, so that a cached encoding is found without loading."""
        ...

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the splits `train`, `validation` and, if there is one, `test`.

        The columns of a split are the requested `roles` that the source has, possibly more, and `row` (int64), which
        identifies the origin of each row. The value in each role: `text`, `text_pair`, `positive`, `negative`, `label`:
        a string; `labels`, `words`, `tags`: strings; `spans`: `start`, `end` and `label` of each; `value`: numbers;
        `score`: a number; `features`: a number, a string or None by name; `image`: `bytes` or `path` of an image file.
        A column `group` of strings, which no task requests, keeps the rows of a group in one fold; the data check
        reports groups that are in several splits.

        Raises:
            DataError: The data cannot be read; the message names the file, the row and the column.
        """
        ...

    def describe_row(self, split: str, row: int) -> str:
        """Return the origin of a row for a message: `my.csv, row 18`."""
        ...

    def describe_role(self, role: str) -> str:
        """Return the user's name for the column of a role (`text`, `label`) for a message: `data.label=category`."""
        ...


@runtime_checkable
class SeparableSource(Protocol):
    """A `Source` that can read one split without the files of the others.

    It repeats no member of `Source`: `isinstance` would compute the fingerprint, which reads all files.
    """

    def for_split(self, split: str, numeric: Mapping[str, bool]) -> Source | None:
        """Return the source of one split; None if the split depends on the data of another one.

        Args:
            split: The split.
            numeric: For each feature by name, True for numbers and False for texts, as the task learned from training.
        """
        ...


@runtime_checkable
class LocatesRows(Protocol):
    """A `Source` that knows where a row comes from. It repeats no member of `Source`, as `SeparableSource`."""

    def locate_row(self, split: str, row: int) -> tuple[str | None, int | None]:
        """Return the file of a row and the number of its record there, from 1; None for what it does not have."""
        ...


@runtime_checkable
class HasColumns(Protocol):
    """A `Source` whose rows have columns, also some without a role. It repeats no member of `Source`."""

    def column_names(self, split: str) -> list[str]:
        """Return the names of all columns of a split."""
        ...

    def read_columns(self, split: str, names: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        """Yield the column `row` and the cells of some columns, for all rows that a split may contain."""
        ...


@dataclass(frozen=True, kw_only=True)
class TaskInfo:
    """Sizes and counts that a fitted task knows and that models and losses may ask for.

    A model or loss gets a field if its constructor has a parameter of that name. A field that is None does not apply to
    the task and is not passed, so the parameter keeps its default; only `num_outputs` is always passed. A task of your
    own may return a subclass with more fields.

    Attributes:
        vocab_size: Entries of the tokenizer's vocabulary, for tasks that read tokens.
        max_length: Tokens of the longest sample, special tokens included, for tasks that read tokens.
        pad_id: Token id that fills padded rows, for tasks that read tokens.
        num_features: Width F of `features` (B, F), for tasks that read tables.
        image_channels: Channels of `pixel_values` (1 gray, 3 color), for tasks that read images.
        image_size: Height and width of `pixel_values` in pixels, for tasks that read images.
        num_outputs: Width C of the model's output; None asks for the model's own features.
        class_counts: Training targets of each of the C classes or labels.
        class_names: Names of the C classes or labels, in their order.
        num_train: Training samples; for language models the tokens of the training split.
        num_token_types: Token types that tell the texts of a pair apart (1: none), for tasks that read pairs.
        output_level: `token` if the model gives one output per token; None: one output per sample.
        train_target: The `Target` of training batches if it may differ from the `Target` in evaluation.
    """

    vocab_size: int | None = None
    max_length: int | None = None
    pad_id: int | None = None
    num_features: int | None = None
    image_channels: int | None = None
    image_size: tuple[int, ...] | None = None
    num_outputs: int | None
    class_counts: list[int] | None = None
    class_names: list[str] | None = None
    num_train: int | None = None
    num_token_types: int | None = None
    output_level: Literal["token"] | None = None
    train_target: Target | None = None

    def arguments(self) -> dict[str, Any]:
        """Return the fields that apply, by parameter name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None or name == "num_outputs"}


class Task(Stateful, Protocol):
    """The glue of one type of job, from the columns of raw data to metrics and predictions.

    `state_dict` is JSON: what `fit` learned from the training split (labels, tokenizer, ...).

    A task may have more abilities, each a protocol below: `HasNumericColumns`, `HasTrainTarget`, `UsesExtraRows`,
    `HasPredictionRows`, `LanguageModelTask`, `HasEndToken`, `HasPredictScript`, `UsesTagTransitions`. It may also
    declare these class attributes as literals, which are read from the source before torch is loaded:

    * `monitors`: the names of all metrics that `checkpoint.monitor` may name;
    * `shares_by`: the task's keys that turn training targets into `shares` if one of them is above 0;
    * `outputs_by`: the task's key that sets the number of outputs, if null lets the model return its features;
    * `level`: `token` if the task needs a model with one output per token;
    * `tags_sequences`: True if each row of its targets (B, T) is a sequence of tags, see `NeedsSequences`.
    """

    monitor: str
    """The metric that picks the best checkpoint unless `checkpoint.monitor` names another."""

    target: Target
    """The `Target` of its batches."""

    inputs: Inputs
    """The `Inputs` of its batches."""

    def columns(self) -> tuple[str, ...]:
        """Return the columns that the task reads from a source."""
        ...

    def input_columns(self) -> tuple[str, ...]:
        """Return the columns that a prediction needs: `columns` without the targets."""
        ...

    def fingerprint(self) -> str:
        """Return a digest that changes if `fit` or `encode` would give another result for the same data."""
        ...

    def fit(self, train: Dataset) -> None:
        """Learn from the training split what encoding needs. Called once, before `encode`."""
        ...

    def encode(self, rows: Columns) -> EncodedColumns:
        """Turn raw columns into encoded columns, row by row. The result is cached.

        A raw row may become several encoded rows, its blocks: then the column `BLOCK_OF` contains, for each encoded
        row, the position of its raw row in `rows`, ascending, each position at least once.

        Raises:
            RowError: A row cannot be used.
        """
        ...

    def encode_inputs(self, rows: Columns) -> EncodedColumns:
        """Turn the columns `input_columns` into encoded columns, row by row: `encode` without the targets.

        Raises:
            RowError: A row cannot be used.
        """
        ...

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Log a summary of the encoded splits and return warnings about them."""
        ...

    def lengths(self, encoded: MappedRows) -> np.ndarray | None:
        """Return the number of tokens of each row, int64 (N,), or None if rows have no length."""
        ...

    def collate(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        """Make a batch of encoded rows. All randomness comes from `rng`."""
        ...

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        """Make the model's inputs of rows of `encode_inputs`. Padded inputs fit an exported graph.

        For outputs per token, the packed layout requests outputs (B, W, C) at the tokens that `predictions` needs, and
        the padded layout gives the outputs (B, T, C) of all tokens. Outputs per sample are (B, C) in both.
        """
        ...

    def info(self) -> TaskInfo:
        """Return what models and losses may ask for by parameter name. Called after `fit` or `load_state_dict`."""
        ...

    def metrics(self) -> MetricCollection:
        """Return new metrics over (output, target); the caller moves them to the device.

        Several devices update a metric with consecutive parts of a split. Its states are then merged in the order of
        the data, so each state needs a `dist_reduce_fx`, such as "sum" for counts and "cat" for rows.
        """
        ...

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[Prediction]:
        """Turn outputs into one JSON object per row for a person to read, probabilities to six decimals.

        * a class: `{"label": "cat", "probability": 0.9}`, and if `top` is above 1 also `"probabilities": {"cat": 0.9,
          ...}` of the `top` most likely classes;
        * labels: `{"labels": ["cat", ...], "probabilities": {"cat": 0.9, ...}}`, the most likely first: the labels
          above the threshold, and the probabilities of these labels and of at least the `top` most likely ones;
        * values: `{"value": 1.5}` or, for several, `{"value": [1.5, ...]}`, in the user's units;
        * tags: `{"words": [...], "tags": ["O", None, ...]}`, None for a word that the model did not read, and if tags
          mark entities `"entities": [{"type": "PER", "start": 0, "end": 2}, ...]`, words `start` up to before `end`;
        * spans: `{"text": "...", "entities": [{"type": "PER", "start": 0, "end": 4, "text": "Anna"}, ...]}`, characters
          `start` up to before `end`;
        * masked tokens: `{"text": "...", "filled": [{"token": "cat", "probability": 0.9}, None, ...]}`, None for a mask
          token that the model did not read;
        * next tokens: `{"next": [{"token": "cat", "probability": 0.9}, ...], "perplexity": 12.3}`, at least five;
        * vectors: `{"embedding": [0.1, ...]}`.

        Args:
            output: The model's output for `model_inputs(encoded, batching)`, after `calibrate_output`.
            rows: The columns `input_columns`.
            encoded: The result of `encode_inputs(rows)`.
            batching: The layout of the inputs.
            top: Number of most likely classes or tokens to show.
        """
        ...

    def axes(self) -> dict[str, dict[int, str]]:
        """Return the symbolic dimensions of exported inputs, e.g. `{"input_ids": {0: "batch", 1: "sequence"}}`."""
        ...

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        """Return the smallest and largest size of each axis except `batch`, e.g. `{"sequence": (1, 128)}`."""
        ...

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Return random valid padded inputs of these axis sizes, with padding if the sizes allow it."""
        ...

    def artifact_files(self) -> dict[str, str]:
        """Return the text files that an artifact needs next to the model, by name: labels, tokenizer."""
        ...


@runtime_checkable
class HasDecisionRule(Protocol):
    """A task whose outputs become classes or labels by thresholds and a temperature that can be set after training."""

    decision_rule: DecisionRule | None
    """The rule, which metrics, predictions and the files and state of artifacts follow; None if there can be none."""

    threshold: float
    """The threshold of each label without one in the rule."""

    def decide(self, output: Tensor) -> Tensor:
        """Return the decisions for calibrated logits (B, C): True for each label that is predicted, or, of classes,
        scores whose largest is the answer.
        """
        ...

    def calibrated(self, output: Tensor) -> Tensor:
        """Return logits (B, C) divided by the temperature of the rule, float32; the logits themselves without one.

        Loss, metrics, probabilities, and predictions all read the result: `trainer.targets.calibrate_output`.
        """
        ...


@runtime_checkable
class UsesTagTransitions(Protocol):
    """A task that tags sequences and can answer with the best sequence of tags."""

    transitions: TagTransitions | None
    """The scores of transitions of a trained loss (`HasTagTransitions`), which predictions, metrics of artifacts, and
    the files and state of artifacts follow; None if each tag is chosen by itself, and during training."""


@runtime_checkable
class HasNumericColumns(Protocol):
    """A task that reads tables and has learned which of their columns are numeric."""

    @property
    def numeric(self) -> Mapping[str, bool]:
        """True for a column of numbers, False for a column of categories, by column name."""
        ...


@runtime_checkable
class HasCategories(Protocol):
    """A task that reads tables with categories."""

    def unknown_categories(self, features: Row) -> Mapping[str, str]:
        """Return the categories of a row that have no feature of their own, by column name."""
        ...


@runtime_checkable
class HasUnits(Protocol):
    """A task whose outputs and targets are standardized, so that metrics need them in the user's units."""

    def in_units(self, values: Tensor) -> Tensor:
        """Return outputs or targets (B, V) in the user's units, float64 where the device has it."""
        ...


@runtime_checkable
class HasTrainTarget(Protocol):
    """A task whose training batches may have another `Target` than its evaluation batches."""

    train_target: Target


@runtime_checkable
class UsesExtraRows(Protocol):
    """A task whose training samples use other rows of the split, as mixup does."""

    def extra_rows(self, rng: SampleRng) -> list[int]:
        """Return the positions of the extra rows; `collate` gets these rows after the samples."""
        ...


@runtime_checkable
class HasByteBatches(Protocol):
    """A task that reads images and can leave their standardization to the device."""

    def collate_bytes(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        """Make a batch as `collate` does, which has the same bits once `Batch.to` has moved it."""
        ...


@runtime_checkable
class HasPredictionRows(Protocol):
    """A task that must prepare rows of the data before it can predict them."""

    def prediction_rows(self, rows: Columns) -> Columns:
        """Turn rows of the data into inputs of a prediction, such as texts with a mask token."""
        ...


@runtime_checkable
class LanguageModelTask(Protocol):
    """A language modeling task: `causal` if a token is predicted only from the tokens before it.

    Its metrics are over tokens: they may get the logits (N, V) and the targets (N,) of a part of a batch at a time.
    """

    causal: bool


@runtime_checkable
class HasAnswers(Protocol):
    """A task with one output per sample that can say what outputs mean, as the predictions of an evaluation do."""

    def answers(self, output: Tensor) -> list[Any]:
        """Return what each row of outputs (B, C) says: the class, the labels, or the values in the user's units."""
        ...


@runtime_checkable
class HasEndToken(Protocol):
    """A task whose texts end with a token, which also ends generated text."""

    @property
    def end_id(self) -> int:
        """The id of the end-of-text token."""
        ...


@runtime_checkable
class HasPredictScript(Protocol):
    """A task whose artifacts can predict without the trainer; artifacts of other tasks have no `predict.py`."""

    script: tuple[str, str] | None
    """Type of the rows and of the answers: keys of `READERS` and `ANSWERS` in `trainer.export.bundle`."""


Cache: TypeAlias = "tuple[Tensor, ...]"
"""Keys and values of the P positions seen, each (B, heads, P, D / heads): the first layer's keys and its values, the
second layer's keys, and so on. The batch is the first dimension: `tuple(part[order] for part in cache)` reorders it.
"""


@runtime_checkable
class TokenByTokenModel(Protocol):
    """A causal language model that can decode token by token with a key-value cache."""

    cached: bool
    """False if this instance cannot, for example because its outputs are not token-level."""

    def empty_cache(self, batch_size: int) -> Cache:
        """Return the cache of `batch_size` sequences without tokens, the input of the first `step`."""
        ...

    def step(self, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Run the next T tokens (B, T) of each sequence.

        Returns:
            The outputs of the last token (B, C), and the cache of P + T positions.
        """
        ...


@runtime_checkable
class HasCausality(Protocol):
    """A model that declares if its tokens attend only to earlier tokens; None if that is unknown."""

    causal: bool | None


@runtime_checkable
class HasPackingSupport(Protocol):
    """A model that declares if it keeps the samples of a packed row apart; other models are assumed to."""

    packed: bool


@runtime_checkable
class DefersLogits(Protocol):
    """A model that ends with a linear layer and can leave that layer to the loss."""

    defer_logits: bool
    """Return `trainer.deferred_logits.DeferredLogits` instead of logits; False at first."""

    def output_layer(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the weight (C, D) and the bias (C,) of the last layer; None if it cannot be left to the loss."""
        ...


@runtime_checkable
class HasInputEmbeddings(Protocol):
    """A model that knows its embeddings of tokens; the models of transformers have this method."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the module whose weight has a row for each token."""
        ...


@runtime_checkable
class PerturbsWeights(Protocol):
    """A method that moves weights to where the loss of a step is larger (the group `perturb`)."""

    perturbs: str
    """The weights that move by default: `embeddings` (of tokens), or `matrices` (with at least two axes)."""
    targets: list[str] | None
    """Patterns for names of the weights to move instead."""
    moves: int
    """Number of moves in a step; each needs a forward and backward pass."""
    weight: float
    """Weight of the loss after the last move; the weight of the loss itself is 1."""
    start_steps: int
    """Optimizer steps before the first move."""

    def __call__(self, weight: Tensor, offset: Tensor, gradient: Tensor) -> Tensor:
        """Return the next offset of a weight from its value; all tensors have the weight's shape.

        With `shard`, they are `DTensor`: torch's operations on them see the complete weight, as norms do.

        Args:
            weight: The weight as it is trained.
            offset: Its present offset; 0 at first.
            gradient: The gradient of the mean loss of the step at the present offset.
        """
        ...


@runtime_checkable
class ComparesOutputs(Protocol):
    """A term that makes two forward passes with different dropout masks agree (the group `perturb`)."""

    perturbs: str
    """`outputs`."""
    targets: tuple[str, ...]
    """The types of `Target` that it supports."""
    start_steps: int
    """Optimizer steps before the first second pass."""

    def __call__(self, first: Tensor, second: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
        """Return what is added to the mean of both losses: a sum over the targets, shape ().

        Args:
            first: Scores of the first pass (..., C).
            second: Scores of the second pass, of the same shape.
            target: The targets of the batch.
            ignore_index: Targets of this value are left out; None if the loss has none.
        """
        ...


@runtime_checkable
class EndsWithHead(Protocol):
    """A model whose linear layer `head` makes its outputs; it calls the layer once in each forward pass.

    `ends_with_head` is a class attribute with a literal value: the `Inputs` for which this is so.
    """

    ends_with_head: tuple[Inputs, ...]


@runtime_checkable
class HasSelfAttention(Protocol):
    """A transformer in which every token passes through all weights, so that the operations of a step are known."""

    @property
    def self_attention(self) -> tuple[int, int] | None:
        """The number of self-attention layers and their width; None if they are not known."""
        ...


@runtime_checkable
class HasArchitecture(Protocol):
    """A model that can be rebuilt without its original files from this JSON, which is saved in each checkpoint."""

    architecture: Document


@runtime_checkable
class HasPooling(Protocol):
    """A model that pools token vectors to one vector per sample: `cls`, `mean`, `max` or `last`."""

    pooling: str


class Loader(Protocol):
    """The training data, one list of micro-batches per optimizer step.

    Attributes:
        requested: The key `train.accumulate`.
        accumulate: Micro-batches of a step; may change between steps.
        tokens: The key `loader.tokens`: positions of a micro-batch; None divides a step by `accumulate` instead.
    """

    requested: int | Literal["auto"]
    accumulate: int
    tokens: int | None

    def load(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step."""
        ...

    def load_largest(self) -> list[Batch]:
        """Return the micro-batches of a step that needs as much memory as any."""
        ...

    def fewer_tokens(self) -> int | None:
        """Return the `loader.tokens` with which a micro-batch needs about half the memory, if there is one."""
        ...

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step from `start` up to before `stop`."""
        ...


class Schedule(Protocol):
    """A function from a step, counted from 0, to the factor on the base learning rates."""

    def __call__(self, step: int, /) -> float: ...


@runtime_checkable
class MetricSchedule(Stateful, Protocol):
    """A schedule that follows the monitored metric, which is evaluated for it every `every_steps` steps."""

    every_steps: int

    def __call__(self, step: int, /) -> float: ...

    def observe(self, value: float, higher_is_better: bool) -> None:
        """Record the monitored metric of one evaluation."""
        ...


class Report(Protocol):
    """Receives the events of a run: `metrics.jsonl` (one line per event), the screen, TensorBoard."""

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        """Record an event, such as `train` or `eval`, after a step."""
        ...


@dataclass(frozen=True)
class Event:
    """An event of a run.

    Attributes:
        name: `start` or `resume`, `train` (a line of training metrics), `eval`, `checkpoint` (one is on the disk),
            `end`, and rarer ones such as `early_end`, `stop`, `out_of_memory`, `sparsity`.
        step: The number of completed steps.
        epoch: The same in passes over the data.
        values: The values of the event, as in `metrics.jsonl`.
    """

    name: str
    step: int
    epoch: float
    values: dict[str, Any]


@dataclass(frozen=True)
class RunView:
    """A run as an observer sees it; checkpoints and all other files are in its folder.

    Attributes:
        folder: The run folder, absolute.
        name: The name of the folder.
        config: The config of the run, without secrets.
        total_steps: The length of the run.
        steps_per_epoch: The steps of one pass over the data.
    """

    folder: Path
    name: str
    config: Document
    total_steps: int
    steps_per_epoch: int


class Observer(Protocol):
    """Receives the events of a run in the first process, on the thread that trains.

    It gets copies, and random numbers that it draws do not change the run. If it raises an error, the error is logged,
    and the run goes on without it. The run waits while it works.
    """

    def observe(self, event: Event, run: RunView) -> None:
        """Receive an event."""
        ...

    def close(self) -> None:
        """Release what is open. Called once, at the end of the run, also after an error."""
        ...
