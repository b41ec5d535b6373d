"""The keys we own: their types, defaults, units and meaning, in one place.

Parts (the groups) are not described here: their keys are the parameters of what their `_target_` names.
"""

# ruff: noqa: RUF009  each of these calls makes a dataclasses.field
from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeAlias

Duration: TypeAlias = int | str
"""Optimizer steps, or a number with a unit: `500st`, `3ep`, `0.5ep`, `10%` (of the run)."""

Part: TypeAlias = dict[str, Any]
"""What `_target_` names and its keyword arguments."""


def _key(default: Any, doc: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


def _text(default: str | None, doc: str) -> Any:
    return field(default=default, metadata={"doc": doc, "text": True})


def _section(kind: type, doc: str) -> Any:
    return field(default_factory=kind, metadata={"doc": doc, "section": kind})


def _group(doc: str, keys: type | None = None) -> Any:
    return field(default_factory=dict, metadata={"doc": doc, "group": True, "keys": keys})


def _optional_group(doc: str, keys: type) -> Any:
    return field(default=None, metadata={"doc": doc, "group": True, "keys": keys, "optional": True})


@dataclass(frozen=True)
class DataKeys:
    """What is done about data, wherever it comes from."""

    strict: bool = _key(False, "what is wrong with the data ends the run; false: it is told")


@dataclass(frozen=True)
class ModelKeys:
    """What is done with a model, whichever it is."""

    weights: str | None = _key(None, "weights to start from: .safetensors, .pth, a folder, a run")
    weights_rename: list[list[str]] = _key([], "[regular expression, replacement] for the names in that file, in order")
    weights_ignore: list[str] = _key([], "patterns of names that may be missing there, left over or of another shape")
    freeze: list[Any] = _key([], "patterns of names that are not trained, or {match: <pattern>, until: <duration>}")
    features: list[str] = _key([], "modules whose pooled outputs feed a new head, in place of the model's own")
    noisy_tune: float | None = _key(None, "noise added to each matrix at the start, in units of its deviation")
    lora: dict[str, Any] | None = _key(
        None, "low-rank adapters: {rank: 8, alpha: 16, dropout: 0.0, targets: all-linear}"
    )
    channels_last: bool = _key(False, "while training, channels of convolutions are innermost in memory: often faster")


@dataclass(frozen=True)
class OptimizerKeys:
    """Which parameters get which rates, whatever the optimizer."""

    decay: Literal["matrices", "all"] = _key("matrices", "matrices: none of biases, norms and embeddings decays")
    layer_decay: float | None = _key(None, "factor on the learning rate from each layer to the one below, in (0, 1]")
    overrides: list[dict[str, Any]] = _key([], "{match: <pattern of names>, lr: ..., weight_decay: ...}; the last wins")


@dataclass(frozen=True)
class PruneKeys:
    """Which weights are pruned, whatever the method."""

    targets: list[str] | None = _key(None, "patterns of names; null: linear layers and convolutions but the head")


@dataclass(frozen=True)
class RunSection:
    """Where a run is kept."""

    name: str | None = _key(None, "added to the folder's name; fixes the folder when resume=auto")
    dir: str | None = _key(None, "the run folder; null: runs/<date>_<time>[_name], with resume=auto runs/<name>")


@dataclass(frozen=True)
class TrainSection:
    """How long, in what pieces."""

    duration: Duration = _key("4ep", "length of the run: optimizer steps, or a number with st or ep")
    batch_size: int = _key(32, "samples of one optimizer step, over all micro-batches and devices")
    accumulate: int = _key(1, "micro-batches one optimizer step is run in; changes memory, not the result")
    max_grad_norm: float | None = _key(1.0, "gradients are scaled down to this L2 norm; null: never")
    log_every: Duration = _key(10, "a line of training metrics")
    eval_every: Duration = _key("1ep", "an evaluation on the validation split")
    patience: Duration | None = _key(None, "the run ends so long after its best evaluation; null: at its duration")


@dataclass(frozen=True)
class LoaderSection:
    """How samples become batches and reach the device."""

    batching: Literal["packed", "padded", "bucketed", "fixed"] = _key("packed", "packed: several samples a row")
    workers: int = _key(0, "processes that prepare batches; 0: the training process itself")
    prefetch: int = _key(2, "batches each worker keeps ready")
    pin_memory: bool | None = _key(None, "page-locked memory for faster copies; null: on CUDA")
    persistent_workers: bool = _key(True, "workers live through the epochs")
    eval_batch_size: int = _key(128, "samples of one batch in evaluation")
    limit: int | None = _key(None, "so many samples of each split, evenly spread, for trials; null: all")


@dataclass(frozen=True)
class CheckpointSection:
    """What is kept to go on from."""

    every: Duration = _key("1ep", "a checkpoint")
    keep: int = _key(2, "newest checkpoints kept, at least 2; the best one is kept besides")
    monitor: str | None = _key(None, "metric that picks the best checkpoint; null: the task's own")


@dataclass(frozen=True)
class EmaSection:
    """An exponential moving average of the weights."""

    decay: float | None = _key(0.999, "share of the old average kept at each step, in [0, 1); null: no average")


@dataclass(frozen=True)
class LoggerSection:
    """What is shown while it runs."""

    console: Literal["auto", "rich", "plain", "none"] = _key("auto", "the screen; auto: rich on a terminal, else plain")
    tensorboard: bool = _key(True, "event files for TensorBoard")


@dataclass(frozen=True)
class TrainJob:
    """All of a training job."""

    seed: int = _key(0, "fixes order, initial weights and every draw; 0 or more")
    device: str = _key("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["fp32", "bf16", "fp16"] = _key("fp32", "of the forward and backward pass; weights stay fp32")
    compile: bool = _key(False, "torch.compile the model")
    resume: str | None = _key(None, "null; auto: go on in runs/<run.name> or start it; or a run or checkpoint folder")
    trust: list[str] = _key([], "packages that the config inside a checkpoint may name")
    run: RunSection = _section(RunSection, "where the run is kept")
    train: TrainSection = _section(TrainSection, "how long, in what pieces")
    loader: LoaderSection = _section(LoaderSection, "how samples become batches")
    checkpoint: CheckpointSection = _section(CheckpointSection, "what is kept to go on from")
    ema: EmaSection = _section(EmaSection, "moving average of the weights")
    logger: LoggerSection = _section(LoggerSection, "what is shown while it runs")
    task: Part = _group("what is learnt: columns, encoding, metrics")
    data: Part = _group("where samples come from", DataKeys)
    model: Part = _group("the network", ModelKeys)
    loss: Part = _group("what is minimized")
    optimizer: Part = _group("how weights are updated", OptimizerKeys)
    scheduler: Part = _group("the learning rate over the run")
    prune: Part | None = _optional_group("weights that are 0 from the start to the end", PruneKeys)
    export: Part = _group("artifacts written at the end")


@dataclass(frozen=True)
class PlanJob(TrainJob):
    """All of a training job, to be looked at before it is run."""

    json: bool = _key(False, "one JSON document in place of tables")
    trial: bool = _key(True, "one update on the CPU, thrown away, measures memory; false: only what is known without")
    depth: int = _key(3, "levels of modules that are shown; deeper ones are counted with those they are in")


@dataclass(frozen=True)
class DiffJob:
    """What two runs have in common is left out."""

    left: str | None = _key(None, "a run folder; null: the newest run but one")
    right: str | None = _key(None, "a run folder; null: the newest run")
    json: bool = _key(False, "one JSON document in place of tables")


@dataclass(frozen=True)
class ReportJob:
    """A page about a run."""

    run: str | None = _key(None, "the run folder; null: the newest run")
    beside: list[str] = _key([], "further run folders, side by side with it")
    output: str | None = _key(None, "the file; null: report.html in the run folder")


@dataclass(frozen=True)
class EvalJob:
    """All of an evaluation. `stored_overrides` are changes of the run's own config: full key and value."""

    run: str | None = _key(None, "the run folder; null: the newest run")
    checkpoint: str = _key("best", "best, last or step-N")
    split: str = _key("test", "train, validation or test")
    weights: Literal["auto", "raw", "ema"] = _key("auto", "auto: the ones that scored best")
    device: str = _key("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["fp32", "bf16", "fp16"] = _key("fp32", "of the forward pass")
    trust: list[str] = _key([], "packages that the config inside the checkpoint may name")
    stored_overrides: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class ExportJob:
    """All of an export. `stored_overrides` are changes of the run's own config: full key and value."""

    run: str | None = _key(None, "the run folder; null: the newest run")
    checkpoint: str = _key("best", "best, last or step-N")
    weights: Literal["auto", "raw", "ema"] = _key("auto", "auto: the ones that scored best")
    split: str = _key("test", "the split that the metric of an artifact is proved on")
    trust: list[str] = _key([], "packages that the config inside the checkpoint may name")
    prune: Part | None = _optional_group("weights of the artifacts that become 0", PruneKeys)
    export: Part = _group("the artifacts")
    stored_overrides: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class ColumnsSection:
    """The columns of an input file; null: as in the run's own data, else of the role's name."""

    text: str | None = _key(None, "texts")
    text_pair: str | None = _key(None, "second texts")
    words: str | None = _key(None, "words, a list")
    image: str | None = _key(None, "paths of images, relative to the folder of the file that names them")


@dataclass(frozen=True)
class PredictJob:
    """All of a prediction. `stored_overrides` are changes of the run's own config: full key and value."""

    run: str | None = _key(None, "the run folder; null: the newest run")
    input: str | None = _text(None, "a text, a file or a folder of images; null or -: each line of standard input")
    output: str | None = _key(None, "a file, .jsonl, .csv or .parquet; null or -: JSON lines on standard output")
    columns: ColumnsSection = _section(ColumnsSection, "which columns of a file are read")
    backend: Literal["torch", "onnx"] = _key("torch", "torch: a checkpoint; onnx: the run's artifact onnx")
    top: int = _key(1, "so many of the likeliest classes or tokens, with their probabilities")
    neighbours: int | None = _key(None, "so many nearest texts of the corpus, by the cosine of their vectors")
    corpus: str | None = _text(None, "a file of the texts that neighbours are looked for among")
    checkpoint: str = _key("best", "best, last or step-N")
    weights: Literal["auto", "raw", "ema"] = _key("auto", "auto: the ones that scored best")
    device: str = _key("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["fp32", "bf16", "fp16"] = _key("fp32", "of the forward pass")
    trust: list[str] = _key([], "packages that the config inside the checkpoint may name")
    stored_overrides: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class GenerateJob:
    """All of a generation of text."""

    run: str | None = _key(None, "the run folder; null: the newest run")
    prompt: str | None = _text(None, "what the text goes on from; null or -: each line of standard input")
    output: str | None = _key(None, "a file for one JSON object a line, -: standard output; null: the texts, to read")
    explain: int | None = _key(None, "so many best next tokens at each step, with their probabilities")
    backend: Literal["torch", "onnx"] = _key("torch", "torch: a checkpoint; onnx: the run's artifact onnx_cache")
    checkpoint: str = _key("best", "best, last or step-N")
    weights: Literal["auto", "raw", "ema"] = _key("auto", "auto: the ones that scored best")
    device: str = _key("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: Literal["fp32", "bf16", "fp16"] = _key("fp32", "of the forward pass")
    trust: list[str] = _key([], "packages that the config inside the checkpoint may name")
    decode: Part = _group("how tokens are chosen")


@dataclass(frozen=True)
class VerifyJob:
    """All of a verification. `stored_overrides` are changes of the run's own config: full key and value."""

    run: str | None = _key(None, "the run folder; null: the newest run")
    start: str | None = _key(None, "step-N: replay from that checkpoint (step-0: the start); null: the last but one")
    steps: int | None = _key(None, "replay so many steps only and compare what was logged; null: up to the next one")
    device: str | None = _key(None, "auto, cpu, cuda, cuda:N or mps; null: the run's own")
    trust: list[str] = _key([], "packages that the config inside a checkpoint may name")
    stored_overrides: tuple[tuple[str, Any], ...] = ()


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


def keys(kind: type) -> dict[str, str]:
    """The configurable keys of a job or section, with their annotations."""
    return {item.name: str(item.type) for item in fields(kind) if "doc" in item.metadata}


def doc(kind: type, name: str) -> str:
    """What a key means."""
    return next(str(item.metadata["doc"]) for item in fields(kind) if item.name == name)


def texts(kind: type) -> frozenset[str]:
    """The keys of a job whose values are texts of a user, taken as they are written."""
    return frozenset(item.name for item in fields(kind) if "text" in item.metadata)


def sections(kind: type) -> dict[str, type]:
    """The sections of a job that we own, with their schemas."""
    return {item.name: item.metadata["section"] for item in fields(kind) if "section" in item.metadata}


def groups(kind: type) -> tuple[str, ...]:
    """The groups of a job that make a part."""
    return tuple(item.name for item in fields(kind) if "group" in item.metadata)


def needed_groups(kind: type) -> tuple[str, ...]:
    """The groups that a job cannot do without; the part of another one may be null."""
    return tuple(item.name for item in fields(kind) if "group" in item.metadata and "optional" not in item.metadata)


def bare_groups(kind: type) -> tuple[str, ...]:
    """The groups of a job whose options change other sections."""
    return BARE_GROUPS if issubclass(kind, TrainJob) else ()


def shared_keys(kind: type, group: str) -> type | None:
    """The schema of the keys that every option of a group has, whatever it makes; build itself uses them."""
    found = next((item for item in fields(kind) if item.name == group), None)
    return None if found is None else found.metadata.get("keys")


def own_keys(part: dict[str, Any], shared: type) -> dict[str, Any]:
    """The keys of a part without those that every option of its group has."""
    return {key: value for key, value in part.items() if key not in keys(shared)}


def stored_sections(kind: type) -> tuple[str, ...]:
    """What of a run's own config a job may change."""
    return STORED_SECTIONS if any(item.name == "stored_overrides" for item in fields(kind)) else ()


def defaults(kind: type) -> dict[str, Any]:
    """The default of every key of a job or section as plain mappings; a group's own keys are left to the YAML."""
    found: dict[str, Any] = {}
    for item in fields(kind):
        if "doc" not in item.metadata:
            continue
        if "optional" in item.metadata:
            found[item.name] = None
            continue
        if "group" in item.metadata:
            found |= {item.name: defaults(shared)} if (shared := item.metadata["keys"]) else {}
            continue
        value = item.default if item.default_factory is MISSING else item.default_factory()
        found[item.name] = defaults(type(value)) if is_dataclass(value) else value
    return found
