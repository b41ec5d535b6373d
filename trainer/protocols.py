"""The contracts between the parts. There is nothing to inherit: whatever has these members fits.

Shapes: B samples of a micro-batch, R rows and L columns of a packed or padded micro-batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

Batching = Literal["packed", "padded", "bucketed", "fixed"]
Columns = Mapping[str, Sequence[Any]]
"""A slice of a table: one sequence for each column, all of the same length."""

BLOCK_OF = "block_of"
"""The column of encoded rows that says which raw row each is a block of, where a raw row may become several."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        inputs: The model's keyword arguments.
        target: What the loss compares the output with; None where the task has no target.
        num_samples: Samples in it, B.
        ids: Their positions in the split, so that a message can name them.
    """

    inputs: dict[str, Tensor]
    target: Tensor | None
    num_samples: int
    ids: tuple[int, ...]

    def to(self, device: Any) -> Batch:
        """The same batch on `device`; the copy overlaps with the host where the memory is pinned."""
        return self._apply(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return self._apply(lambda tensor: tensor.pin_memory())

    def _apply(self, change: Any) -> Batch:
        inputs = {name: change(tensor) for name, tensor in self.inputs.items()}
        target = None if self.target is None else change(self.target)
        return Batch(inputs, target, self.num_samples, self.ids)


@runtime_checkable
class Stateful(Protocol):
    """Anything that changes during a run: what it holds survives a resume."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


Target = Literal["class", "shares", "multi_hot", "values", "views", "similarity"]
"""What a target is, and the output that it is compared with:

* `class`: int64 (...,), output (..., C);
* `shares`: of each class, at least 0 and 1 in all, float32 (B, C), output (B, C);
* `multi_hot`: 0 or 1, float32 (B, C), output (B, C);
* `values`: float32 (B, V), output (B, V);
* `views`: int64 (B, K), the sample's number: the output (B * K, D) has K vectors of each sample, sample by sample, the
  anchor first, then the positive, then hard negatives;
* `similarity`: -1 or 1, float32 (B,), output (2 * B, D): the two vectors of each sample, sample by sample.
"""


Inputs = Literal["tokens", "features", "images"]
"""What a model reads:

* `tokens`: `input_ids` and what belongs to them, padded (`attention_mask`) or packed (`position_ids`, `sequence_ids`,
  `token_index`); `output_index` of any shape says at which flattened positions outputs are wanted;
* `features`: `features`, float32 (B, F);
* `images`: `pixel_values`, float32 (B, channels, H, W).
"""


class Loss(Protocol):
    """A loss is a sum; the loop divides by the number of targets of the whole step.

    Where it has them, these are used too:

    * `targets`: the kinds of `Target` it takes, a tuple of literals that is read before torch is loaded;
    * `check(target)`: raises RowError for a target on the host that it cannot take;
    * `needs_inputs = True`: it is called as `loss(output, target, inputs)`;
    * `in_features` and `scores(output)`: it has parameters of its own and reads that many features of the model, and
      `scores` makes of them what metrics, answers and artifacts see, (..., C).
    """

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the targets: shape (), float32."""
        ...

    def num_targets(self, target: Tensor) -> Tensor:
        """How many terms that sum has: shape (), on the target's device (no host sync)."""
        ...


class Source(Protocol):
    """Raw data: splits of named columns (the group `data`).

    Where it has it, this is used too: `alone(split, numeric)`, the source of one split, which reads nothing else, or
    None where it cannot; `numeric` is what the task learnt of `features`, by name.
    """

    @property
    def fingerprint(self) -> str:
        """Changes when the data changes; cheap, so that a cached encoding is found without loading."""
        ...

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Splits `train`, `validation` and, where there is one, `test`.

        Their columns are those of `roles` that the source has, perhaps more, and `row` (int64), which says where each
        row came from. What a role holds: `text`, `text_pair`, `positive`, `negative`, `label`: a string; `labels`,
        `words`, `tags`: strings; `value`: numbers; `score`: a number; `features`: a number, a string or None by
        name; `image`: `bytes` or `path` of an image file.

        Raises:
            DataError: The data cannot be read; file, row and column are named.
        """
        ...

    def where(self, split: str, row: int) -> str:
        """Where a row came from, for a message: `my.csv, row 18`."""
        ...

    def column(self, role: str) -> str:
        """How the user names what plays `role` (`text`, `label`), for a message: `data.label=category`."""
        ...


class Task(Stateful, Protocol):
    """The glue of a kind of job, from columns of raw data to metrics and answers.

    `state_dict` is JSON: what was learnt from the training split (labels, tokenizer).

    Where it has them, these are used too:

    * `numeric`: the columns of `features` that answers need, and whether each is one of numbers;
    * `monitors`: the names of all metrics that may pick its checkpoint, a tuple of literals that is read before torch
      is loaded;
    * `train_target`: the `Target` of the batches that are trained on, where evaluation has another;
    * `shares_by`: the task's keys that make it `shares` where one is above 0, a tuple of literals that is read before
      torch is loaded;
    * `further(draws)`: rows of the split that samples want besides their own; `collate` gets them behind the samples;
    * `script`: the modules of `trainer.export.standalone` that do for an artifact what `encode_inputs`, `inputs_of` and
      `answers` do; a task without it has no `predict.py`;
    * `ask(rows)`: rows of the data as rows to be answered, where those of the data leave nothing to say.
    """

    monitor: str
    """The metric that picks the best checkpoint unless `checkpoint.monitor` names another."""

    target: Target
    """What the targets of its batches are."""

    inputs: Inputs
    """What the inputs of its batches are."""

    def columns(self) -> tuple[str, ...]:
        """The columns of a source that it reads."""
        ...

    def fingerprint(self) -> str:
        """Changes when `fit` or `encode` would give something else for the same data."""
        ...

    def fit(self, train: Dataset) -> None:
        """Learns from the training split what encoding needs. Called once, before `encode`."""
        ...

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """Raw columns to encoded columns, row by row; runs once, its result is cached.

        A raw row may become several encoded ones, its blocks: then `BLOCK_OF` holds for each the position of its raw
        row in `rows`, rising, each at least once.

        Raises:
            RowError: A row cannot be used.
        """
        ...

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        """Logs what a person should know of the encoded splits before they train on them; returns what is wrong."""
        ...

    def lengths(self, encoded: Dataset) -> np.ndarray | None:
        """Tokens of each row, int64 (N,); None where a row has no length."""
        ...

    def collate(self, rows: Columns, draws: SampleRng, batching: Batching) -> Batch:
        """Encoded rows to a batch. What is random comes from `draws` alone."""
        ...

    def facts(self) -> dict[str, Any]:
        """What models and losses may ask for by parameter name: `vocab_size`, `num_outputs`, `class_counts`, ..."""
        ...

    def metrics(self) -> MetricCollection:
        """Fresh metrics over (output, target), to be moved to the device."""
        ...

    def reads(self) -> tuple[str, ...]:
        """The columns that it needs for an answer: those of `columns` without what is to be found out."""
        ...

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        """The columns `reads` to encoded columns, row by row: `encode` without the targets.

        Raises:
            RowError: A row cannot be used.
        """
        ...

    def inputs_of(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        """The model's inputs for rows of `encode_inputs`; padded they are those of an exported graph.

        Of texts the packed layout asks for outputs (B, W, C) at the tokens that `answers` reads, the padded one has
        outputs (B, T, C) of all of them; where an output is of a sample, both are (B, C).
        """
        ...

    def answers(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        """What a person reads, one JSON object a row, probabilities to six decimals.

        * a class: `{"label": "cat", "probability": 0.9}`, where `top` is above 1 also `"probabilities": {"cat": 0.9,
          ...}` of the `top` likeliest;
        * labels: `{"labels": ["cat", ...], "probabilities": {"cat": 0.9, ...}}`, the likeliest first: the labels above
          the threshold; the probabilities are of those, and of the `top` likeliest where they are more;
        * values: `{"value": 1.5}`, of several `{"value": [1.5, ...]}`, in the user's units;
        * tags: `{"words": [...], "tags": ["O", None, ...]}`, None for a word that is not read, and where tags mark
          entities `"entities": [{"type": "PER", "start": 0, "end": 2}, ...]`, words `start` to before `end`;
        * masked tokens: `{"text": "...", "filled": [{"token": "cat", "probability": 0.9}, None, ...]}`, None for one
          that is not read;
        * next tokens: `{"next": [{"token": "cat", "probability": 0.9}, ...], "perplexity": 12.3}`, at least five;
        * vectors: `{"embedding": [0.1, ...]}`.

        Args:
            output: Of the model for `inputs_of(encoded, batching)`.
            rows: The columns `reads`.
            encoded: What `encode_inputs` made of them.
            batching: The layout of the inputs.
            top: How many of the likeliest are shown.
        """
        ...

    def axes(self) -> dict[str, dict[int, str]]:
        """The symbolic dimensions of the exported inputs, e.g. `{"input_ids": {0: "batch", 1: "sequence"}}`."""
        ...

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest size of each axis but `batch`, e.g. `{"sequence": (1, 128)}`."""
        ...

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        """Random valid padded inputs of the given axis sizes, with padding where the sizes allow any."""
        ...

    def artifact_files(self) -> dict[str, str]:
        """Files an artifact needs beside the model, name to text: labels, tokenizer."""
        ...


class Report(Protocol):
    """Where the events of a run go: one line of `metrics.jsonl`, the screen, TensorBoard."""

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None: ...
