"""The sections of jobs, and the keys that all options of a group share, with their types, ranges and defaults."""

# ruff: noqa: RUF009  each of these calls makes a dataclasses.field
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from trainer.config.schema import as_overrides, key
from trainer.files.untrusted import LIMITS

if TYPE_CHECKING:
    # `schema.keys` finds these names: this module is loaded at every start, also to print help.
    from annotated_types import Ge, Gt, Interval, MinLen

    from trainer.constraints import (
        AnyPath,
        BaseFolder,
        BelowOne,
        Count,
        DataFile,
        Duration,
        NonEmptyStr,
        NonNegative,
        NonNegativeInt,
        Note,
        Positive,
        PositiveToOne,
        Time,
        WeightsPath,
    )

PREDICTIONS = "write the prediction, the loss and the origin of every row to eval/<split>.predictions.parquet"


# Keys that all options of a group share


@dataclass(frozen=True)
class DataKeys:
    """Keys of every data source."""

    strict: bool = key(False, "treat data problems as errors; false only warns")
    drop_broken: bool = key(
        False, "leave out rows that cannot be encoded, such as broken images; false lists them and ends the run"
    )
    folds: Annotated[int, Interval(ge=2, le=1000)] | None = key(
        None, "number of parts of the training and validation rows, each with its share of every class; null has none"
    )
    fold: NonNegativeInt = key(0, "part that is the validation split, from 0; a sweep with a name runs all of them")
    corrections: DataFile | None = key(
        None,
        "CSV file with corrected labels, such as label_errors.csv of folds; its column correction has the new ones",
    )
    mix: Annotated[dict[DataFile, Positive], MinLen(1)] | None = key(
        None,
        "share of the training samples of an epoch for each training file or pattern of files, such as "
        "{a.csv: 0.7, b.csv: 0.3}, or with data=hub for each of several training splits; null draws every sample once",
    )
    max_line_bytes: Count = key(LIMITS.line_bytes, "longest line of a text file, and longest text of a table, in bytes")
    max_expansion: Count = key(
        LIMITS.expansion,
        "largest ratio, beyond 16 MiB, of the unpacked to the compressed size of a .gz file, and of the texts of a "
        "Parquet or Arrow file to its size",
    )
    max_pixels: Count = key(LIMITS.pixels, "largest image, in pixels")


@dataclass(frozen=True)
class LoraKeys:
    """Keys of `model.lora`."""

    rank: Count = key(8, "inner size of the two matrices added next to each weight")
    alpha: Positive = key(16.0, "scale of the added product: alpha / rank")
    dropout: BelowOne = key(0.0, "dropout probability at the input of the adapters, in [0, 1)")
    targets: Annotated[list[NonEmptyStr], MinLen(1)] | Literal["all-linear"] = key(
        "all-linear", "names of modules, such as [query_key_value]; all-linear is every linear layer except the head"
    )


@dataclass(frozen=True)
class ModelKeys:
    """Keys of every model."""

    weights: WeightsPath | None = key(None, "initial weights: a .safetensors or .pth file, a folder or a run")
    weights_rename: list[list[str]] = key(
        [], "[regular expression, replacement] pairs applied in order to the names in that file"
    )
    weights_ignore: list[str] = key(
        [], "patterns of names whose weights may be missing from that file, unexpected, or of another shape"
    )
    freeze: list[Any] = key([], "patterns of parameter names not to train, or {match: <pattern>, until: <duration>}")
    features: list[str] = key([], "modules whose pooled outputs feed a new head that replaces the model's own")
    noisy_tune: NonNegative | None = key(
        None, "noise added to each matrix at the start, in standard deviations of the matrix; null adds none"
    )
    lora: dict[str, Any] | None = key(
        None, f"low-rank adapters, {as_overrides(LoraKeys)}; {{}} uses these defaults; null adds none"
    )
    head_dropout: BelowOne = key(0.0, "dropout probability in front of the head in training, in [0, 1)")
    multi_sample_dropout: Count = key(
        1, "dropout masks in front of the head in training; their losses are averaged; needs model.head_dropout"
    )
    gradient_checkpointing: bool | Literal["none", "blocks", "selective"] = key(
        "none",
        "what blocks compute again in the backward pass to save memory: none; blocks stores only their inputs; "
        "selective also stores the results of matrix products, convolutions and attention",
    )
    channels_last: bool = key(False, "train convolutions with channels innermost in memory, which is often faster")


@dataclass(frozen=True)
class OverrideKeys:
    """Keys of an entry of `optimizer.overrides`."""

    match: NonEmptyStr = key("*", "pattern of parameter names, such as blocks.0.* or *.bias")
    lr: Positive = key(1e-3, "learning rate")
    weight_decay: NonNegative = key(0.0, "weight decay")


@dataclass(frozen=True)
class OptimizerKeys:
    """Keys of every optimizer."""

    decay: Literal["matrices", "all"] = key(
        "matrices", "parameters with weight decay: all, or matrices (no biases, norms and embeddings)"
    )
    layer_decay: PositiveToOne | None = key(
        None, "factor on the learning rate from each layer to the layer below it, in (0, 1]; null is 1"
    )
    overrides: list[dict[str, Any]] = key(
        [], "{match: <pattern of names>, lr: ..., weight_decay: ...} entries; the last match wins"
    )


@dataclass(frozen=True)
class PruneKeys:
    """Keys of every pruning method."""

    targets: Annotated[list[NonEmptyStr], MinLen(1)] | None = key(
        None, "patterns for names of weights; null is all linear layers and convolutions except the head"
    )


# Sections


@dataclass(frozen=True)
class RunSection:
    """The folder of the run."""

    name: str | None = key(None, "suffix of the folder's name; the whole name if resume=auto")
    dir: AnyPath | None = key(None, "run folder; null is runs/<date>_<time>[_name], or runs/<name> if resume=auto")
    cwd: BaseFolder | None = key(
        None, "base folder of relative paths of data and of a teacher; null is the current directory"
    )


@dataclass(frozen=True)
class TrainSection:
    """The length of the run and its intervals."""

    duration: Annotated[Duration, Gt(0)] = key("4ep", "length of the run: steps (500 or 500st) or epochs (0.5ep)")
    batch_size: Count = key(32, "samples of one optimizer step, over all its micro-batches")
    accumulate: Count | Literal["auto"] = key(
        1,
        "micro-batches of one optimizer step; changes the memory used, not the result; auto finds the fewest that fit",
    )
    fused_head: bool = key(
        True,
        "compute the last layer and the loss of a language model together, in chunks, so that its logits are never "
        "stored; false computes the logits of a batch at once",
    )
    max_grad_norm: Positive | None = key(1.0, "L2 norm to which the gradients are clipped; null never clips")
    log_every: Annotated[Duration, Gt(0)] = key(10, "interval between log lines of training metrics")
    eval_every: Annotated[Duration, Gt(0)] = key("1ep", "interval between evaluations on the validation split")
    patience: Annotated[Duration, Gt(0)] | None = key(
        None, "stop early if the monitored metric has not improved for this long; null never stops early"
    )
    max_time: Annotated[Time, Gt(0)] | None = key(
        None,
        "time after which a start of the run saves a checkpoint and ends, to be resumed: 30s, 10m, 4h or 1d, from the "
        "start of the command; null has no limit",
    )


@dataclass(frozen=True)
class LoaderSection:
    """The batches: how samples form them and reach the device."""

    batching: Literal["packed", "padded", "bucketed", "fixed"] = key(
        "packed",
        "layout of a batch: packed (several samples share a row), padded (to the longest sample), bucketed (padded, "
        "samples of similar length together) or fixed (padded to task.max_length)",
    )
    sampler: Literal["shuffled", "balanced", "weighted"] = key(
        "shuffled",
        "samples of an epoch: shuffled (each one once), balanced (each class equally often) or weighted (see "
        "loader.weights); an epoch has as many samples in each case",
    )
    sampler_column: NonEmptyStr | None = key(
        None, "column of the data whose values are balanced or weighted; null is the class"
    )
    weights: dict[Any, NonNegative] | NonEmptyStr | None = key(
        None,
        "weights of sampler=weighted: {value: weight of each of its rows}, 1 for other values; or a column of numbers",
    )
    tokens: Count | None = key(
        None,
        "tokens of each micro-batch, padding included, at least task.max_length: a step runs as many of them "
        "as its samples need; null divides a step by train.accumulate",
    )
    workers: Annotated[int, Interval(ge=0, le=256)] = key(
        0, "processes that prepare batches; 0 uses the training process"
    )
    prefetch: Annotated[int, Interval(ge=1, le=1024)] = key(2, "batches that each worker keeps ready")
    pin_memory: bool | None = key(None, "copy batches through page-locked memory; null does so on CUDA")
    persistent_workers: bool = key(True, "keep the workers from epoch to epoch")
    timeout: Positive = key(
        600.0, "seconds that the run waits for a batch of a worker before it stops; for the first one at least 60"
    )
    eval_batch_size: Count = key(128, "samples of one evaluation batch")
    limit: Count | None = key(
        None, "use only this many evenly spaced samples of each split (for quick trials); null uses all"
    )


@dataclass(frozen=True)
class CheckpointSection:
    """The checkpoints."""

    every: Annotated[Duration, Gt(0)] = key("1ep", "interval between checkpoints, in the forms of train.eval_every")
    keep: Annotated[int, Ge(2), Note("one may be damaged")] = key(
        2, "number of newest checkpoints kept, at least 2; the best one is kept as well"
    )
    monitor: NonEmptyStr | None = key(
        None,
        "metric that selects the best checkpoint, by the loss if it is equal, or <name>/<metric> of several validation "
        "sets; null is the task's default",
    )


@dataclass(frozen=True)
class EmaSection:
    """The exponential moving average of the weights."""

    decay: BelowOne | None = key(
        0.999, "exponential moving average of the weights: decay per step, in [0, 1); null turns it off"
    )


@dataclass(frozen=True)
class EvalSection:
    """The evaluation of the best weights at the end."""

    predictions: bool = key(True, PREDICTIONS)


@dataclass(frozen=True)
class LaunchSection:
    """The processes of a job with several devices."""

    grace: Positive = key(30.0, "seconds that the other processes have to end after one has failed")
    timeout: Positive = key(1800.0, "seconds that a process waits for the others before the run fails")


@dataclass(frozen=True)
class SweepSection:
    """A sweep (--multirun) whose jobs are kept in one folder."""

    name: NonEmptyStr | None = key(
        None,
        "name of the sweep: its jobs and their table are in sweeps/<name>, and the same command continues it; "
        "null lets Hydra run the sweep in runs/multirun",
    )
    jobs: Count = key(1, "jobs of a sweep with a name that run at the same time, a process each")
    trials: Count | None = key(
        None, "jobs of a search by Optuna, which chooses the values of the swept keys; null runs every combination"
    )
    prune: bool = key(True, "stop jobs of a search whose monitored metric is behind the median of the others")


@dataclass(frozen=True)
class LoggerSection:
    """The outputs for metrics during the run."""

    console: Literal["auto", "rich", "plain", "none"] = key(
        "auto", "output on the screen: rich, plain (lines of text) or none; auto is rich on a terminal, else plain"
    )
    tensorboard: bool = key(True, "write event files for TensorBoard")
    histograms: Annotated[Duration, Gt(0)] | None = key(
        None, "interval between histograms of parameters and gradients in TensorBoard; null writes none"
    )
    trackers: list[Literal["wandb", "mlflow", "swanlab"]] = key(
        [],
        "experiment trackers that get the name, the config without secrets and the metrics of the run: any of wandb, "
        "mlflow and swanlab",
    )
    offline: bool = key(False, "let trackers write only into the folder trackers next to the run folder")


@dataclass(frozen=True)
class ColumnsSection:
    """The columns of an input file; null is the column of the run's own data, or the role's name."""

    text: str | None = key(None, "column of texts")
    text_pair: str | None = key(None, "column of second texts")
    words: str | None = key(None, "column of lists of words")
    image: str | None = key(None, "column of image paths, relative to the folder of the file that contains them")
