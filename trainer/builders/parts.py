"""The parts of a job, one function each."""

from __future__ import annotations

import inspect
import logging
import shutil
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from trainer.builders.instantiate import locate, make, parameters
from trainer.builders.teacher import load_teacher
from trainer.config import schema
from trainer.config.duration import to_steps
from trainer.config.jobs import TrainJob
from trainer.config.pairing import NO_METRIC, unfit_targets
from trainer.config.schema import own_keys
from trainer.config.sections import DataKeys, OptimizerKeys
from trainer.data.encode import Encoded, cache_root, encode
from trainer.data.loader import Batches, LoaderOptions
from trainer.data.plan import BatchIndices
from trainer.errors import ConfigError, DataError, did_you_mean, format_error, raise_if_any
from trainer.evaluate import directions
from trainer.loop import Schedule
from trainer.optimizer.groups import hidden_names, layers_of, parameter_groups, undecayed_names
from trainer.protocols import Batching, Loss, Source, Task

logger = logging.getLogger(__name__)


def build_device(name: str) -> torch.device:
    """The device of a name; `auto` takes CUDA, else MPS, else the CPU.

    Raises:
        ConfigError: It is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    device = torch.device(name)
    present = {
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, True):
        count = torch.cuda.device_count()
        remedy = f"This torch sees {count} CUDA device{'' if count == 1 else 's'}; use device=cpu or device=auto"
        raise ConfigError(format_error("device", "is not available on this machine", remedy, value=name))
    return device


def check_targets(job: TrainJob) -> None:
    """Raises ConfigError where parts that are not ours cannot be imported, all at once: before the data is read."""
    faults: list[str] = []
    for group in schema.groups(TrainJob):
        part = getattr(job, group)
        if part is not None and not part["_target_"].startswith("trainer."):
            try:
                locate(group, part)
            except ConfigError as error:
                faults += error.messages
    raise_if_any(*faults)


def build_task(job: TrainJob, state: dict[str, Any] | None = None) -> Task:
    """The task, with what it learnt from its training data where a checkpoint holds it."""
    task: Task = make("task", job.task)
    if state is not None:
        task.load_state_dict(state)
    return task


def build_encoded(job: TrainJob, task: Task, *, fitted: bool) -> Encoded:
    """The encoded splits, from the cache where they are known; the task is fitted afterwards."""
    return _encoded(job, make("data", own_keys(job.data, DataKeys)), task, fitted=fitted)


def _encoded(job: TrainJob, source: Source, task: Task, *, fitted: bool) -> Encoded:
    encoded = encode(source, task, limit=job.loader.limit, root=cache_root(), fitted=fitted)
    for split, rows in encoded.splits.items():
        if not len(rows):
            raise DataError(f"the {split} split is empty")
    return encoded


def build_split(job: TrainJob, task: Task, split: str) -> Encoded:
    """The encoded rows of a split, read alone where the source can do so; the task is fitted already."""
    source = make("data", own_keys(job.data, DataKeys))
    alone = getattr(source, "alone", None)
    found = None if alone is None else alone(split, getattr(task, "numeric", {}))
    return _encoded(job, found or source, task, fitted=True)


def check_model(job: TrainJob, model: nn.Module, batches: Batches) -> None:
    """Raises ConfigError unless the model takes the batches, sees what the task lets it see, and has the formats."""
    _check_causality(batches.task, model)
    _check_formats(job, model)
    inputs = batches[BatchIndices(0, (0,))].inputs
    try:
        inspect.signature(model.forward).bind(**inputs)
    except TypeError as error:
        message = format_error(
            "loader.batching",
            f"{job.model['_target_']} does not take such a batch ({error})",
            f"A batch holds {', '.join(inputs)}; loader.batching=padded needs no support by the model",
            value=batches.batching,
        )
        raise ConfigError(message) from error


def _check_causality(task: Task, model: nn.Module) -> None:
    """That of models whose classes do not tell; of the others `trainer.config.pairing` knows before torch is loaded."""
    wanted, causal = getattr(task, "causal", None), getattr(model, "causal", None)
    if wanted is None or causal is None or wanted == causal:
        return
    problem = "sees the tokens that it is to predict" if wanted else "does not see what comes behind a masked token"
    remedy = "Name a GPT-2, or use model=decoder" if wanted else "Name a BERT or its like, or use model=text_encoder"
    raise ConfigError(format_error("model.path", problem, remedy))


def _check_formats(job: TrainJob, model: nn.Module) -> None:
    """That of pretrained models, whose family does not tell before their files are read."""
    formats = job.export.get("formats") or []
    if "onnx_cache" in formats and not getattr(model, "cached", False):
        problem = "this model cannot read token by token, as onnx_cache does"
        raise ConfigError(format_error("export.formats", problem, "Leave it out, or name a GPT-2", value=formats))


def build_loss(job: TrainJob, task: Task, device: torch.device) -> Loss:
    """The loss, its buffers and parameters on the device."""
    facts = task.facts()
    if needs_teacher(job):
        facts["teacher_model"] = load_teacher(job.loss.get("teacher"), task, device, job.trust)
    loss = make("loss", job.loss, **facts)
    _check_ignored(loss, task)
    kinds = getattr(loss, "targets", None)
    for target in (task.target, getattr(task, "train_target", task.target)):
        if kinds is not None and target not in kinds:
            raise ConfigError(format_error("loss", unfit_targets(kinds, target), value=job.loss["_target_"]))
    if not hasattr(loss, "num_targets"):
        problem = f"{job.loss['_target_']} has no num_targets: a loss is a sum, and says over how many targets"
        raise ConfigError(format_error("loss", problem))
    return cast(Loss, loss.to(device) if isinstance(loss, nn.Module) else loss)


def needs_teacher(job: TrainJob) -> bool:
    """Whether the loss learns from another run's model."""
    return "teacher_model" in parameters(locate("loss", job.loss))


def _check_ignored(loss: Any, task: Task) -> None:
    """Raises ConfigError where the target that is left out is one that means something."""
    ignored = getattr(loss, "ignore_index", None)
    meant = {"class": range(task.facts().get("num_outputs") or 0), "multi_hot": range(2)}.get(task.target, range(0))
    if ignored in meant:
        problem = f"is a target that means something, one of 0 to {meant[-1]}"
        raise ConfigError(format_error("loss.ignore_index", problem, "Use a negative number", value=ignored))


def build_optimizer(job: TrainJob, model: nn.Module, loss: Loss) -> torch.optim.Optimizer:
    """The optimizer over the model's parameters and the loss's own; each group carries its `initial_lr`."""
    modules = nn.ModuleDict({"model": model})
    if isinstance(loss, nn.Module):
        modules["loss"] = loss
    if not any(parameter.requires_grad for parameter in modules.parameters()):
        problem = "leaves nothing to train"
        raise ConfigError(
            format_error("model.freeze", problem, "Spare something, such as the head", value=job.model["freeze"])
        )
    part = own_keys(job.optimizer, OptimizerKeys)
    try:
        groups = parameter_groups(
            modules.named_parameters(),
            lr=part.get("lr"),
            weight_decay=part.get("weight_decay"),
            undecayed=undecayed_names(modules),
            layers=layers_of(modules),
            **{key: job.optimizer[key] for key in schema.keys(OptimizerKeys) if key in job.optimizer},
        )
    except ConfigError as error:
        raise ConfigError(*(f"optimizer.{message}" for message in error.messages)) from error
    optimizer: torch.optim.Optimizer = make("optimizer", part, params=groups, hidden=hidden_names(modules))
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        problem = "evaluates the loss several times a step, which the loop does not"
        raise ConfigError(format_error("optimizer._target_", problem, value=job.optimizer["_target_"]))
    for group in optimizer.param_groups:
        group["initial_lr"] = float(group["lr"])
    return optimizer


def build_schedule(job: TrainJob, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Step to factor. A key `x` of a parameter `x_steps` is a duration and becomes steps here."""
    names = parameters(locate("scheduler", job.scheduler))
    part: dict[str, Any] = {}
    for key, value in job.scheduler.items():
        if f"{key}_steps" in names:
            part[f"{key}_steps"] = to_steps(value, steps_per_epoch, total_steps)
            if part[f"{key}_steps"] > total_steps:
                logger.warning("scheduler.%s=%s is longer than the run of %d steps", key, value, total_steps)
        else:
            part[key] = value
    schedule: Schedule = make("scheduler", part, total_steps=total_steps)
    try:
        schedule(0)
    except ConfigError as error:
        raise ConfigError(*(f"scheduler.{message}" for message in error.messages)) from error
    return schedule


def build_monitor(job: TrainJob, task: Task) -> tuple[str, bool]:
    """The metric that picks the best checkpoint, and whether higher is better.

    Raises:
        ConfigError: The task has no such metric.
    """
    known = directions(task.metrics())
    monitor = job.checkpoint.monitor or task.monitor
    if monitor not in known:
        raise ConfigError(
            format_error("checkpoint.monitor", NO_METRIC, did_you_mean(monitor, list(known)), value=monitor)
        )
    return monitor, known[monitor]


def loader_options(
    job: TrainJob, device: torch.device, batching: Batching, *, workers: int | None = None
) -> LoaderOptions:
    """How the loaders work; memory is pinned for CUDA unless the job says otherwise."""
    loader = job.loader
    return LoaderOptions(
        batching=batching,
        workers=loader.workers if workers is None else workers,
        prefetch=loader.prefetch,
        pin_memory=device.type == "cuda" if loader.pin_memory is None else loader.pin_memory,
        persistent_workers=loader.persistent_workers,
    )


def plan_lengths(job: TrainJob, task: Task, encoded: Encoded) -> np.ndarray | None:
    """The lengths that `loader.batching=bucketed` groups by; None shuffles freely."""
    return task.lengths(encoded.splits["train"]) if job.loader.batching == "bucketed" else None


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Compiles the model's forward in place, so that the names of its weights stay; goes on without a C++ compiler."""
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        logger.warning("compile: no C++ compiler found, which torch.compile needs on the CPU; going on without it")
        return
    model.compile(dynamic=True)
