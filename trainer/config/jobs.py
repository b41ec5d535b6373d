"""The jobs of the verbs: their keys, sections and groups."""

# ruff: noqa: RUF009  each of these calls makes a dataclasses.field
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeAlias

from trainer.config.schema import group, key, optional_group, section, text
from trainer.config.sections import (
    CheckpointSection,
    ColumnsSection,
    DataKeys,
    EmaSection,
    LoaderSection,
    LoggerSection,
    ModelKeys,
    OptimizerKeys,
    PruneKeys,
    RunSection,
    TrainSection,
)

Part: TypeAlias = dict[str, Any]
"""What `_target_` names and its keyword arguments."""


@dataclass(frozen=True)
class TrainJob:
    """All of a training job."""

    seed: int = key(0, "fixes order, initial weights and every draw; 0 or more")
    device: str = key("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["fp32", "bf16", "fp16"] = key("fp32", "of the forward and backward pass; weights stay fp32")
    compile: bool = key(False, "torch.compile the model")
    resume: str | None = key(None, "null; auto: go on in runs/<run.name> or start it; or a run or checkpoint folder")
    trust: list[str] = key([], "packages that the config inside a checkpoint may name")
    run: RunSection = section(RunSection, "where the run is kept")
    train: TrainSection = section(TrainSection, "how long, in what pieces")
    loader: LoaderSection = section(LoaderSection, "how samples become batches")
    checkpoint: CheckpointSection = section(CheckpointSection, "what is kept to go on from")
    ema: EmaSection = section(EmaSection, "moving average of the weights")
    logger: LoggerSection = section(LoggerSection, "what is shown while it runs")
    task: Part = group("what is learnt: columns, encoding, metrics")
    data: Part = group("where samples come from", DataKeys)
    model: Part = group("the network", ModelKeys)
    loss: Part = group("what is minimized")
    optimizer: Part = group("how weights are updated", OptimizerKeys)
    scheduler: Part = group("the learning rate over the run")
    prune: Part | None = optional_group("weights that are 0 from the start to the end", PruneKeys)
    export: Part = group("artifacts written at the end")


@dataclass(frozen=True)
class PlanJob(TrainJob):
    """All of a training job, to be looked at before it is run."""

    json: bool = key(False, "one JSON document in place of tables")
    trial: bool = key(True, "one update on the CPU, thrown away, measures memory; false: only what is known without")
    depth: int = key(3, "levels of modules that are shown; deeper ones are counted with those they are in")


@dataclass(frozen=True)
class DiffJob:
    """What two runs have in common is left out."""

    left: str | None = key(None, "a run folder; null: the newest run but one")
    right: str | None = key(None, "a run folder; null: the newest run")
    json: bool = key(False, "one JSON document in place of tables")


@dataclass(frozen=True)
class RunJob:
    """A job about a run that there is."""

    run: str | None = key(None, "the run folder; null: the newest run")
    trust: list[str] = key([], "packages that the config inside a checkpoint may name")


@dataclass(frozen=True)
class CheckpointJob(RunJob):
    """A job about the model of a run."""

    checkpoint: str = key("best", "best, last or step-N")
    weights: Literal["auto", "raw", "ema"] = key("auto", "auto: the ones that scored best")


@dataclass(frozen=True)
class DeviceJob(CheckpointJob):
    """A job that computes with the model of a run."""

    device: str = key("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["fp32", "bf16", "fp16"] = key("fp32", "of the forward pass")


@dataclass(frozen=True)
class DataJob(RunJob):
    """A job that reads data of a run. `stored_overrides` are changes of the run's own config: full key and value."""

    stored_overrides: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class ReportJob:
    """A page about a run."""

    run: str | None = key(None, "the run folder; null: the newest run")
    beside: list[str] = key([], "further run folders, side by side with it")
    output: str | None = key(None, "the file; null: report.html in the run folder")


@dataclass(frozen=True)
class EvalJob(DeviceJob, DataJob):
    """All of an evaluation."""

    split: str = key("test", "train, validation or test")


@dataclass(frozen=True)
class ExportJob(CheckpointJob, DataJob):
    """All of an export."""

    split: str = key("test", "the split that the metric of an artifact is proved on")
    prune: Part | None = optional_group("weights of the artifacts that become 0", PruneKeys)
    export: Part = group("the artifacts")


@dataclass(frozen=True)
class PredictJob(DeviceJob, DataJob):
    """All of a prediction."""

    run: str | None = key(None, "the run folder, or a folder of artifacts; null: the newest run")
    input: str | None = text(None, "a text, a file or a folder of images; null or -: each line of standard input")
    output: str | None = key(None, "a file, .jsonl, .csv or .parquet; null or -: JSON lines on standard output")
    columns: ColumnsSection = section(ColumnsSection, "which columns of a file are read")
    backend: Literal["torch", "onnx"] | None = key(
        None, "torch: a checkpoint; onnx: an artifact; null: onnx where run is a folder of artifacts, else torch"
    )
    top: int = key(1, "so many of the likeliest classes or tokens, with their probabilities")
    neighbours: int | None = key(None, "so many nearest texts of the corpus, by the cosine of their vectors")
    corpus: str | None = text(None, "a file of the texts that neighbours are looked for among")


@dataclass(frozen=True)
class GenerateJob(DeviceJob):
    """All of a generation of text."""

    run: str | None = key(None, "the run folder, or a folder of artifacts; null: the newest run")
    prompt: str | None = text(None, "what the text goes on from; null or -: each line of standard input")
    output: str | None = key(None, "a file, .jsonl, .csv or .parquet; -: JSON lines on standard output; null: texts")
    explain: int | None = key(None, "so many best next tokens at each step, with their probabilities")
    backend: Literal["torch", "onnx"] | None = key(
        None, "torch: a checkpoint; onnx: onnx_cache; null: onnx where run is a folder of artifacts, else torch"
    )
    decode: Part = group("how tokens are chosen")


@dataclass(frozen=True)
class VerifyJob(DataJob):
    """All of a verification."""

    start: str | None = key(None, "step-N: replay from that checkpoint (step-0: the start); null: the last but one")
    steps: int | None = key(None, "replay so many steps only and compare what was logged; null: up to the next one")
    device: str | None = key(None, "auto, cpu, cuda, cuda:N or mps; null: the run's own")


Job: TypeAlias = TrainJob | DiffJob | EvalJob | ExportJob | PredictJob | ReportJob | GenerateJob | VerifyJob

JobType: TypeAlias = type[Job]

JOBS: dict[str, JobType] = {
    "train": TrainJob,
    "plan": PlanJob,
    "eval": EvalJob,
    "export": ExportJob,
    "predict": PredictJob,
    "generate": GenerateJob,
    "verify": VerifyJob,
    "diff": DiffJob,
    "report": ReportJob,
}
"""The verbs that read a configuration."""

STORED_SECTIONS = ("data", "loader")
"""What of a run's own config `eval`, `export`, `predict` and `verify` may change on the command line."""

BARE_GROUPS = ("experiment", "debug")
"""Groups whose options change other sections and have none of their own."""


def bare_groups(kind: type) -> tuple[str, ...]:
    """The groups of a job whose options change other sections."""
    return BARE_GROUPS if issubclass(kind, TrainJob) else ()


def stored_sections(kind: type) -> tuple[str, ...]:
    """What of a run's own config a job may change."""
    return STORED_SECTIONS if any(item.name == "stored_overrides" for item in fields(kind)) else ()
