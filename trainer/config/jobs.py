"""The jobs of the verbs: every key that is not a part's own, with its type, range and default."""

# ruff: noqa: RUF009  each of these calls makes a dataclasses.field
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from trainer.config.schema import group, key, optional_group, section, text
from trainer.config.sections import (
    PREDICTIONS,
    CheckpointSection,
    ColumnsSection,
    DataKeys,
    EmaSection,
    EvalSection,
    LaunchSection,
    LoaderSection,
    LoggerSection,
    ModelKeys,
    OptimizerKeys,
    PruneKeys,
    RunSection,
    SweepSection,
    TrainSection,
)

if TYPE_CHECKING:
    # `schema.keys` finds these names: this module is loaded at every start, also to print help.
    from trainer.constraints import (
        AnyPath,
        Count,
        Fraction,
        NonEmptyStr,
        NonNegativeInt,
        Port,
        Positive,
        PositiveToOne,
        Seed,
    )

Part: TypeAlias = dict[str, Any]
"""A `_target_` and its keyword arguments."""

_DEVICE = "auto, cpu, cuda, cuda:N or mps"
_PRECISION = "number format of the forward pass: fp32, tf32, bf16 or fp16"
_TRUST = "packages of your own whose code the config of a checkpoint may run"
_NEWEST = "run folder; null is the newest run"
_NEWEST_OR_ARTIFACTS = "run folder, or a folder of artifacts; null is the newest run"
_METRICS = (
    "metrics to compute in addition to the task's own: names such as auroc, mcc or top_5_accuracy, or "
    "{_target_: <class>, name: <name>, <key>: <value>}"
)
_SPLITS = "train, test, validation, or validation/<name> of several sets; validation is then the monitored one"
_JSON = "print one JSON document instead of tables"
_BACKEND = "torch runs a checkpoint, onnx {}; null is onnx if run is a folder of artifacts, else torch"


@dataclass(frozen=True)
class TrainJob:
    """A training job."""

    seed: Seed = key(0, "seed of the sample order, the initial weights and all random numbers; at least 0")
    device: str = key("auto", f"device: {_DEVICE}")
    devices: Count | Literal["auto"] = key(
        1,
        "devices that train together, a process each; auto is every GPU; changes the time, not what is learned",
    )
    shard: bool | Count = key(
        False, "store weights, gradients and optimizer in shards: true over all devices, or over groups of this many"
    )
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = key(
        "fp32",
        "number format of the forward and backward pass: fp32, tf32 (matrix products on CUDA; else fp32), bf16 or "
        "fp16; weights stay fp32",
    )
    deterministic: bool = key(
        True,
        "use only operations that repeat to the last bit on a GPU; false may be faster, but a resumed or repeated run "
        "may differ slightly",
    )
    compile: bool | Literal["graphs"] = key(
        False,
        "compile the model with torch.compile, block by block if batches have one shape; graphs also replays the "
        "blocks as CUDA graphs, which is faster for small models",
    )
    resume: AnyPath | None = key(
        None, "run or checkpoint folder to resume; auto resumes or starts runs/<run.name>; null starts a new run"
    )
    trust: list[str] = key([], _TRUST)
    metrics: list[Any] = key([], _METRICS)
    observers: list[Any] = key(
        [], "objects that receive every event of the run, each as {_target_: <class>, <key>: <value>}"
    )
    run: RunSection = section(RunSection, "the folder of the run")
    train: TrainSection = section(
        TrainSection, "the length of the run and its intervals: steps (500), epochs (0.5ep) or a share of the run (10%)"
    )
    loader: LoaderSection = section(LoaderSection, "how samples become batches")
    checkpoint: CheckpointSection = section(CheckpointSection, "when checkpoints are saved, and which are kept")
    ema: EmaSection = section(EmaSection, "the moving average of the weights")
    eval: EvalSection = section(EvalSection, "the evaluation of the best weights at the end")
    logger: LoggerSection = section(LoggerSection, "where metrics are written")
    launch: LaunchSection = section(LaunchSection, "how the processes of several devices wait for each other")
    sweep: SweepSection = section(SweepSection, "the jobs of a sweep (--multirun)")
    task: Part = group("what the model learns: columns, encoding, metrics")
    data: Part = group("the source of the samples", DataKeys)
    model: Part = group("the network", ModelKeys)
    loss: Part = group("the function to minimize")
    optimizer: Part = group("how weights are updated", OptimizerKeys)
    scheduler: Part = group("the learning rate over the run")
    prune: Part | None = optional_group("weights fixed at 0 during training", PruneKeys)
    perturb: Part | None = optional_group("adversarial training, or R-Drop: a second pass of each step")
    export: Part = group("the artifacts written at the end")


@dataclass(frozen=True)
class PlanJob(TrainJob):
    """A training job, examined without running it."""

    json: bool = key(False, _JSON)
    trial: bool = key(True, "measure memory with one trial update on the CPU; false shows only what is known without")
    depth: NonNegativeInt = key(3, "levels of modules shown; deeper modules are counted in their parents")


@dataclass(frozen=True)
class InitJob:
    """A proposal for data of the user's own, or a part of the user's own."""

    path: AnyPath | None = text(None, "data: a table (CSV, TSV, JSON Lines, Parquet, ...), a text file, or a folder")
    part: Literal["loss", "model", "task", "data", "scheduler", "optimizer", "metric"] | None = key(
        None,
        "write a part instead, with its option and a test: loss, model, task, data, scheduler, optimizer or metric",
    )
    name: NonEmptyStr | None = text(
        None, "name of the experiment or part; null is the name of the data, or my_ and the kind of part"
    )
    target: str | None = text(None, "column to predict; null finds it")
    text: str | None = text(None, "column of texts to read; null finds it")
    ask: bool = key(False, "ask for the columns and the name before writing; --ask is short for ask=true")
    force: bool = key(False, "replace files of the same name")


@dataclass(frozen=True)
class DiffJob:
    """A comparison of two runs, or of two sweeps."""

    left: AnyPath | None = key(None, "run folder, or folder of a sweep; null is the second newest run")
    right: AnyPath | None = key(None, "run folder, or folder of a sweep; null is the newest run")
    json: bool = key(False, _JSON)


@dataclass(frozen=True)
class RunJob:
    """A job about an existing run."""

    run: AnyPath | None = key(None, _NEWEST)
    trust: list[str] = key([], _TRUST)


@dataclass(frozen=True)
class CheckpointJob(RunJob):
    """A job about the model of a run."""

    checkpoint: str = key("best", "checkpoint: best, last or step-N")
    weights: Literal["auto", "raw", "ema"] = key(
        "auto", "weights: raw, ema, or auto, which takes those that scored best"
    )


@dataclass(frozen=True)
class DeviceJob(CheckpointJob):
    """A job that runs the model of a run."""

    device: str = key("auto", f"device: {_DEVICE}")
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = key("fp32", _PRECISION)


@dataclass(frozen=True)
class DataJob(RunJob):
    """A job that reads the data of a run. `stored_overrides` replace keys of the run's config: full key and value."""

    stored_overrides: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class ReportJob:
    """A page about a run or a sweep."""

    run: AnyPath | None = key(None, "run folder, or the folder of a sweep (sweeps/<name>); null is the newest run")
    beside: list[AnyPath] = key([], "other run folders to show side by side with it")
    output: AnyPath | None = key(
        None, "file of the page; null is report.html in the run folder, or comparison.html of several runs"
    )
    force: bool = key(False, "replace a file at output or in the run folder that is not a page of this tool")


@dataclass(frozen=True)
class EvalJob(DeviceJob, DataJob):
    """An evaluation."""

    split: str = key("test", f"split to evaluate: {_SPLITS}")
    devices: Count | Literal["auto"] = key(
        1,
        "number of devices that share the batches, a process each; auto is every GPU",
    )
    predictions: bool = key(True, PREDICTIONS)
    metrics: list[Any] | None = key(None, f"{_METRICS}; null is the run's own")
    slices: list[NonEmptyStr] = key(
        [], "columns of the data whose values divide the rows: the metrics of each part are shown with their intervals"
    )
    threshold: Literal["kept", "auto"] | Fraction | dict[Literal["recall"], PositiveToOne] | None = key(
        "kept",
        "probability above which a label, or the rarer of two classes, is predicted; the run keeps it: a number; auto "
        "finds the best F1 on the validation split; {recall: 0.9} the best precision with this recall; kept changes "
        "nothing; null goes back to the task's own",
    )
    calibrate: bool | Literal["kept"] = key(
        "kept",
        "true finds the temperature at which probabilities fit the validation split best, and the run keeps it; kept "
        "changes nothing; false goes back to none",
    )
    force: bool = key(False, "replace a file in the run's folder eval that no evaluation has written")
    launch: LaunchSection = section(LaunchSection, "how the processes of several devices wait for each other")


@dataclass(frozen=True)
class ExportJob(CheckpointJob, DataJob):
    """An export."""

    split: str = key("test", f"split that proves the metric of an artifact: {_SPLITS}")
    force: bool = key(False, "replace files in the folder of the artifacts that no export has written")
    prune: Part | None = optional_group("weights of the artifacts that are set to 0", PruneKeys)
    export: Part = group("the artifacts")


@dataclass(frozen=True)
class PredictJob(DeviceJob, DataJob):
    """A prediction."""

    run: AnyPath | None = key(None, _NEWEST_OR_ARTIFACTS)
    input: str | None = text(
        None, "text, file or folder of images; null or - reads one row from each line of standard input"
    )
    output: AnyPath | None = key(
        None, "file for the predictions: .jsonl, .csv or .parquet; null or - prints JSON lines to standard output"
    )
    force: bool = key(False, "replace an existing file at output")
    keep: list[NonEmptyStr] = key(
        [], "columns of the input that the output repeats as input_<column>; row is the number of the row, from 1"
    )
    columns: ColumnsSection = section(ColumnsSection, "the columns to read from a file")
    backend: Literal["torch", "onnx"] | None = key(None, _BACKEND.format("an artifact"))
    top: Count = key(1, "number of most likely classes or tokens to show, with their probabilities")
    threshold: Literal["kept"] | Fraction | None = key(
        "kept",
        "probability above which a label, or the rarer of two classes, is predicted; kept is what trainer eval found; "
        "null is the task's own",
    )
    neighbours: Count | None = key(None, "number of nearest texts of the corpus to show, by cosine similarity")
    corpus: AnyPath | None = text(None, "file of texts in which neighbors are searched")


@dataclass(frozen=True)
class GenerateJob(DeviceJob):
    """A generation of text."""

    run: AnyPath | None = key(None, _NEWEST_OR_ARTIFACTS)
    prompt: str | None = text(None, "text to continue; null or - reads one prompt from each line of standard input")
    output: AnyPath | None = key(
        None, "file for the texts: .jsonl, .csv or .parquet; - prints JSON lines to standard output; null prints texts"
    )
    force: bool = key(False, "replace an existing file at output")
    explain: Count | None = key(None, "number of most likely tokens to show at each step, with their probabilities")
    backend: Literal["torch", "onnx"] | None = key(None, _BACKEND.format("the artifact onnx_cache"))
    decode: Part = group("how tokens are chosen")


@dataclass(frozen=True)
class VerifyJob(DataJob):
    """A verification."""

    start: str | None = key(
        None, "checkpoint to replay from: step-N (step-0 is the start); null is the second newest checkpoint"
    )
    steps: Count | None = key(
        None, "replay only this many steps and compare the logged values; null replays up to the next checkpoint"
    )
    device: str | None = key(None, f"device: {_DEVICE}; null is the run's own")


@dataclass(frozen=True)
class DoctorJob:
    """A check of the machine."""

    quick: bool = key(
        False, "leave out the small training, which is killed, resumed and compared; --quick is short for quick=true"
    )


@dataclass(frozen=True)
class SchemaJob:
    """A JSON Schema of the config."""

    output: AnyPath | None = key(None, "file for the schema, such as conf/schema.json; null prints it")
    group: str | None = key(
        None, "group whose options the described files are, such as loss; null is a whole config or an experiment"
    )
    force: bool = key(False, "replace a file at output that is no schema of this tool")


@dataclass(frozen=True)
class ServeJob:
    """A server."""

    run: AnyPath | None = key(None, _NEWEST_OR_ARTIFACTS)
    folder: AnyPath | None = key(None, "folder of artifacts, in the place of run")
    artifact: Literal["onnx", "onnx_fp16", "onnx_int8"] | None = key(
        None, "artifact to serve; null is the first of onnx, onnx_fp16 and onnx_int8 that there is"
    )
    host: NonEmptyStr = key("127.0.0.1", "address to listen on; 0.0.0.0 is reached from other machines")
    port: Port = key(8000, "port to listen on; 0 is a free one")
    threads: Count | None = key(None, "threads of the model; null is one for each core")
    batch_size: Count | None = key(
        None,
        "largest number of rows that the model computes at once; requests that wait share it; null is 32, and max_rows "
        "for tables",
    )
    max_rows: Count = key(256, "largest number of rows of a request")
    max_bytes: Count = key(10_000_000, "largest size of a request in bytes")
    max_characters: Count = key(
        100_000, "largest number of characters of a text; dividing it into tokens takes up to 3 µs for each character"
    )
    max_waiting: Count = key(1024, "rows that may wait; a request beyond them is refused at once, to be sent again")
    timeout: Positive = key(30.0, "seconds after which a client that waits gets no answer")


@dataclass(frozen=True)
class CardJob:
    """A model card."""

    run: AnyPath | None = key(None, _NEWEST)
    output: AnyPath | None = key(None, "file of the card; null is README.md in the run folder")
    license: NonEmptyStr | None = text(
        None, "license of the weights, as the hub names it, such as apache-2.0; null leaves it to be filled in"
    )
    language: list[NonEmptyStr] = key([], "languages of the texts, such as [en]")
    dataset: NonEmptyStr | None = text(
        None, "name of the data; null is the name on the hub or of the data option, if it has one"
    )
    force: bool = key(False, "replace a file at output, or README.md of the run, that this tool has not written")


@dataclass(frozen=True)
class PushJob:
    """A transfer to a hub."""

    run: AnyPath | None = key(None, _NEWEST)
    to: NonEmptyStr | None = text(None, "repository on the hub: owner/name")
    private: bool = key(True, "create a missing repository as a private one; an existing one stays as it is")
    dry_run: bool = key(False, "only check and list the files; nothing is sent")


Job: TypeAlias = (
    TrainJob
    | InitJob
    | DiffJob
    | EvalJob
    | ExportJob
    | PredictJob
    | ReportJob
    | GenerateJob
    | VerifyJob
    | SchemaJob
    | DoctorJob
    | ServeJob
    | CardJob
    | PushJob
)

JobType: TypeAlias = type[Job]

JOBS: dict[str, JobType] = {
    "init": InitJob,
    "train": TrainJob,
    "plan": PlanJob,
    "eval": EvalJob,
    "export": ExportJob,
    "predict": PredictJob,
    "generate": GenerateJob,
    "verify": VerifyJob,
    "diff": DiffJob,
    "report": ReportJob,
    "schema": SchemaJob,
    "doctor": DoctorJob,
    "serve": ServeJob,
    "card": CardJob,
    "push": PushJob,
}
"""The job type of each verb."""

POSITIONS: dict[str, tuple[str, ...]] = {
    "init": ("path",),
    "eval": ("run",),
    "export": ("run",),
    "predict": ("run", "input"),
    "generate": ("run", "prompt"),
    "verify": ("run",),
    "diff": ("left", "right"),
    "report": ("run", "beside"),
    "serve": ("run",),
    "card": ("run",),
    "push": ("run", "to"),
}
"""Keys of each verb whose values may be given without their names, in this order; a list takes all that are left."""

STORED_SECTIONS = ("data", "loader")
"""Sections of a run's config that `eval`, `export`, `predict` and `verify` may change on the command line."""

PRESET_GROUPS = ("experiment", "debug")
"""Groups whose options set keys of other sections and make no part."""


def preset_groups(job_type: type) -> tuple[str, ...]:
    """Return the groups of a job whose options set keys of other sections."""
    return PRESET_GROUPS if issubclass(job_type, TrainJob) else ()


def stored_sections(job_type: type) -> tuple[str, ...]:
    """Return the sections of a run's config that a job may change."""
    return STORED_SECTIONS if any(item.name == "stored_overrides" for item in fields(job_type)) else ()
