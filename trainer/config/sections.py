"""The sections and keys we own: their types, defaults, units and meaning."""

# ruff: noqa: RUF009  each of these calls makes a dataclasses.field
from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from trainer.config.schema import key, written

Duration: TypeAlias = int | str
"""Optimizer steps, or a number with a unit: `500st`, `3ep`, `0.5ep`, `10%` (of the run)."""


@dataclass(frozen=True)
class DataKeys:
    """What is done about data, wherever it comes from."""

    strict: bool = key(False, "what is wrong with the data ends the run; false: it is told")


@dataclass(frozen=True)
class LoraKeys:
    """The keys of `model.lora`."""

    rank: int = key(8, "of the product of two matrices beside each weight")
    alpha: float = key(16.0, "the product is scaled by alpha / rank")
    dropout: float = key(0.0, "probability on the input of the product, in [0, 1)")
    targets: list[str] | Literal["all-linear"] = key("all-linear", "names of modules; all linear layers but the head")


@dataclass(frozen=True)
class ModelKeys:
    """What is done with a model, whichever it is."""

    weights: str | None = key(None, "weights to start from: .safetensors, .pth, a folder, a run")
    weights_rename: list[list[str]] = key([], "[regular expression, replacement] for the names in that file, in order")
    weights_ignore: list[str] = key([], "patterns of names that may be missing there, left over or of another shape")
    freeze: list[Any] = key([], "patterns of names that are not trained, or {match: <pattern>, until: <duration>}")
    features: list[str] = key([], "modules whose pooled outputs feed a new head, in place of the model's own")
    noisy_tune: float | None = key(None, "noise added to each matrix at the start, in units of its deviation")
    lora: dict[str, Any] | None = key(None, f"low-rank adapters, {written(LoraKeys)}; {{}}: these")
    channels_last: bool = key(False, "while training, channels of convolutions are innermost in memory: often faster")


@dataclass(frozen=True)
class OptimizerKeys:
    """Which parameters get which rates, whatever the optimizer."""

    decay: Literal["matrices", "all"] = key("matrices", "matrices: none of biases, norms and embeddings decays")
    layer_decay: float | None = key(None, "factor on the learning rate from each layer to the one below, in (0, 1]")
    overrides: list[dict[str, Any]] = key([], "{match: <pattern of names>, lr: ..., weight_decay: ...}; the last wins")


@dataclass(frozen=True)
class PruneKeys:
    """Which weights are pruned, whatever the method."""

    targets: list[str] | None = key(None, "patterns of names; null: linear layers and convolutions but the head")


@dataclass(frozen=True)
class RunSection:
    """Where a run is kept."""

    name: str | None = key(None, "added to the folder's name; fixes the folder when resume=auto")
    dir: str | None = key(None, "the run folder; null: runs/<date>_<time>[_name], with resume=auto runs/<name>")
    cwd: str | None = key(None, "relative paths of data and of a teacher start here; null: where the run is started")


@dataclass(frozen=True)
class TrainSection:
    """How long, in what pieces."""

    duration: Duration = key("4ep", "length of the run: optimizer steps, or a number with st or ep")
    batch_size: int = key(32, "samples of one optimizer step, over all micro-batches and devices")
    accumulate: int = key(1, "micro-batches one optimizer step is run in; changes memory, not the result")
    max_grad_norm: float | None = key(1.0, "gradients are scaled down to this L2 norm; null: never")
    log_every: Duration = key(10, "a line of training metrics")
    eval_every: Duration = key("1ep", "an evaluation on the validation split")
    patience: Duration | None = key(None, "the run ends so long after its best evaluation; null: at its duration")


@dataclass(frozen=True)
class LoaderSection:
    """How samples become batches and reach the device."""

    batching: Literal["packed", "padded", "bucketed", "fixed"] = key("packed", "packed: several samples a row")
    workers: int = key(0, "processes that prepare batches; 0: the training process itself")
    prefetch: int = key(2, "batches each worker keeps ready")
    pin_memory: bool | None = key(None, "page-locked memory for faster copies; null: on CUDA")
    persistent_workers: bool = key(True, "workers live through the epochs")
    eval_batch_size: int = key(128, "samples of one batch in evaluation")
    limit: int | None = key(None, "so many samples of each split, evenly spread, for trials; null: all")


@dataclass(frozen=True)
class CheckpointSection:
    """What is kept to go on from."""

    every: Duration = key("1ep", "a checkpoint")
    keep: int = key(2, "newest checkpoints kept, at least 2; the best one is kept besides")
    monitor: str | None = key(None, "metric that picks the best checkpoint; null: the task's own")


@dataclass(frozen=True)
class EmaSection:
    """An exponential moving average of the weights."""

    decay: float | None = key(0.999, "share of the old average kept at each step, in [0, 1); null: no average")


@dataclass(frozen=True)
class LoggerSection:
    """What is shown while it runs."""

    console: Literal["auto", "rich", "plain", "none"] = key("auto", "the screen; auto: rich on a terminal, else plain")
    tensorboard: bool = key(True, "event files for TensorBoard")


@dataclass(frozen=True)
class ColumnsSection:
    """The columns of an input file; null: as in the run's own data, else of the role's name."""

    text: str | None = key(None, "texts")
    text_pair: str | None = key(None, "second texts")
    words: str | None = key(None, "words, a list")
    image: str | None = key(None, "paths of images, relative to the folder of the file that names them")
