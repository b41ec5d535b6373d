"""The data of a job: its task, the encoded splits, and the loaders that batch them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch

from trainer.builders.instantiate import in_group, instantiate
from trainer.builders.sampling import build_sampler
from trainer.config.jobs import TrainJob
from trainer.config.schema import option_keys
from trainer.config.sections import DataKeys
from trainer.data.batch_plan import BatchPlan
from trainer.data.batches import Batches, EvaluationBatches, LoaderOptions, TrainLoader
from trainer.data.corrections import Corrections
from trainer.data.encode import Encoded, cache_root, encode
from trainer.data.folds import Folds
from trainer.data.quality import DataReport, measure_quality
from trainer.distributed.ranks import Ranks
from trainer.errors import CheckpointError, ConfigError, DataError, TrainerError, format_error
from trainer.files.untrusted import LIMITS, Limits
from trainer.layout import TASK, Document
from trainer.protocols import Batching, HasNumericColumns, SeparableSource, Source, StateDict, Task
from trainer.task.packing import add_empty_rows, divide_into_rows
from trainer.validation_sets import validation_splits

logger = logging.getLogger(__name__)


def set_limits(data: Document) -> None:
    """Set the limits of this process by the keys of the source; configs of earlier versions have none."""
    LIMITS.line_bytes = data.get("max_line_bytes", Limits.line_bytes)
    LIMITS.expansion = data.get("max_expansion", Limits.expansion)
    LIMITS.pixels = data.get("max_pixels", Limits.pixels)


def build_task(job: TrainJob, state: StateDict | None = None) -> Task:
    """Build the task; `state` is what it learned from its training split, if a checkpoint contains that."""
    set_limits(job.data)
    task: Task = instantiate("task", job.task)
    if state is None:
        return task
    try:
        task.load_state_dict(state)
    except TrainerError:
        raise
    except Exception as error:  # of many types: the state may be of another task, or its tokenizer damaged
        problem = f"does not fit the task ({type(error).__name__}: {' '.join(str(error).split())})"
        raise CheckpointError(format_error(TASK, problem, "Use another checkpoint")) from error
    return task


def build_encoded(job: TrainJob, task: Task, *, fitted: bool, check: Callable[[], None] | None = None) -> Encoded:
    """Encode all splits, or read them from the cache; the task is fitted afterwards.

    `check` raises an error about the rest of the job; it is called with the fitted task before any row is encoded.
    """
    try:
        return _encode(job, _build_source(job), task, fitted=fitted, check=check)
    except ConfigError:
        _check_pretrained(job)
        raise


def _build_source(job: TrainJob) -> Source:
    source: Source = instantiate("data", option_keys(job.data, DataKeys))
    folds = job.data.get("folds")
    source = source if folds is None else Folds(source, folds, job.data["fold"], job.seed)
    # Outside the folds, so that a corrected label moves no row.
    corrections = job.data.get("corrections")
    return source if corrections is None else Corrections(source, corrections)


def _check_pretrained(job: TrainJob) -> None:
    """Raise ConfigError if `task.tokenizer` only defaults to a pretrained model that does not exist."""
    path = job.model.get("path")
    if path is None or job.task.get("tokenizer") != path or not job.model["_target_"].startswith("trainer.model."):
        return
    from trainer.model.pretrained_loading import read_config

    with in_group("model"):
        read_config(path, {})


def build_split(job: TrainJob, task: Task, split: str) -> Encoded:
    """Encode one split for a fitted task. Sources that can read a split on its own read nothing else."""
    source = _build_source(job)
    numeric = task.numeric if isinstance(task, HasNumericColumns) else {}
    single = source.for_split(split, numeric) if isinstance(source, SeparableSource) else None
    return _encode(job, single or source, task, fitted=True)


def _encode(
    job: TrainJob, source: Source, task: Task, *, fitted: bool, check: Callable[[], None] | None = None
) -> Encoded:
    encoded = encode(
        source,
        task,
        limit=job.loader.limit,
        root=cache_root(),
        fitted=fitted,
        drop_broken=bool(job.data.get("drop_broken")),
        check=check,
    )
    for split, rows in encoded.splits.items():
        if not len(rows):
            raise DataError(f"the {split} split is empty")
    return encoded


def check_data(job: TrainJob, task: Task, encoded: Encoded) -> DataReport:
    """Check the encoded splits and warn about the problems in them.

    Raises:
        DataError: There are problems, and `data.strict` is true.
    """
    report = measure_quality(encoded.splits, task.target)
    task_warnings = [_name_column(warning, task, encoded.source) for warning in task.check(encoded.splits)]
    warnings = [*task_warnings, *report.warnings(encoded.describe)]
    problems = [*encoded.warnings, *warnings]
    if problems and job.data.get("strict"):
        raise DataError(*(f"data.strict: {problem}" for problem in problems))
    for warning in [*encoded.unlogged, *warnings]:
        logger.warning(warning)
    return report


def _name_column(warning: str, task: Task, source: Source) -> str:
    """Return a warning that begins with the user's name for a column, `data.label=topic`, instead of its role."""
    role, _, text = warning.partition(": ")
    return f"{source.describe_role(role)}: {text}" if role in task.columns() else warning


def build_batch_plan(job: TrainJob, task: Task, encoded: Encoded) -> BatchPlan:
    """Build the draws and the order of the training samples.

    `loader.batching=bucketed` groups samples of similar length.
    """
    train = encoded.splits["train"]
    lengths: np.ndarray | None = task.lengths(train) if job.loader.batching == "bucketed" else None
    sampler = build_sampler(job, task, encoded)
    divide = _divide_by_tokens(job, task, encoded)
    return BatchPlan(len(train), job.train.batch_size, job.seed, lengths, divide, sampler)


def _divide_by_tokens(job: TrainJob, task: Task, encoded: Encoded) -> Callable[[Sequence[int]], list[list[int]]] | None:
    """Return the function that divides the samples of a step into micro-batches of `loader.tokens`; None without it.

    Raises:
        ConfigError: The samples have no tokens.
    """
    if job.loader.tokens is None:
        return None
    lengths, width = task.lengths(encoded.splits["train"]), task.info().max_length
    if lengths is None or width is None:
        problem = "needs a task whose samples are sequences of tokens"
        raise ConfigError(format_error("loader.tokens", problem, "Set it to null", value=job.loader.tokens))
    num_rows = job.loader.tokens // width
    return lambda ids: divide_into_rows(lengths[list(ids)].tolist(), width, num_rows)


def build_loaders(
    job: TrainJob,
    task: Task,
    encoded: Encoded,
    plan: BatchPlan,
    batching: Batching,
    device: torch.device,
    ranks: Ranks,
    *,
    fill: bool,
) -> tuple[TrainLoader, dict[str, EvaluationBatches]]:
    """Build the loader of the training split and one for each validation split, of this process's share."""
    options = loader_options(job, device, batching)
    as_bytes = _leaves_images_to(device)
    validation = {
        split: Batches(encoded.splits[split], task, batching, job.seed, as_bytes=as_bytes)
        for split in validation_splits(encoded.splits)
    }
    complete = None
    if (tokens := job.loader.tokens) is not None:
        if batching != "packed":
            problem = "this model does not support packed batches"
            raise ConfigError(format_error("loader.tokens", problem, "Set loader.tokens=null", value=tokens))
        width, output_level = task.info().max_length, task.info().output_level
        assert width is not None, "the plan has checked it"
        complete = partial(add_empty_rows, num_rows=tokens // width, output_level=output_level)
        batching = "full_rows"
    rows = encoded.splits["train"]
    train = Batches(rows, task, batching, job.seed, training=True, complete=complete, as_bytes=as_bytes)
    loader = TrainLoader(train, plan, job.train.accumulate, options, ranks, tokens=tokens, fill=fill)
    size = job.loader.eval_batch_size
    return loader, {
        split: EvaluationBatches(batches, size, options, ranks, fill=fill) for split, batches in validation.items()
    }


def _leaves_images_to(device: torch.device) -> bool:
    """Return whether images are standardized on the device: a GPU is faster, and has to be sent fewer bytes."""
    return device.type == "cuda"


def loader_options(job: TrainJob, device: torch.device, batching: Batching) -> LoaderOptions:
    """Return the options of all loaders; memory is pinned for CUDA unless `loader.pin_memory` is set."""
    loader = job.loader
    return LoaderOptions(
        batching=batching,
        workers=loader.workers,
        prefetch=loader.prefetch,
        pin_memory=device.type == "cuda" if loader.pin_memory is None else loader.pin_memory,
        persistent_workers=loader.persistent_workers,
        timeout=loader.timeout,
    )
