"""The contract of a task, `Task` with its `TaskInfo`, and the abilities that a task may have in addition."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from trainer.protocols.batch import Batch, Batching, Columns, EncodedColumns, Inputs, Prediction, Row, Stateful, Target

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.decision import DecisionRule
    from trainer.files.mapped import MappedRows
    from trainer.sample_rng import SampleRng
    from trainer.tags import TagTransitions


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
