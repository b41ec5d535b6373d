"""A training job's parts put together."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from trainer.accumulation import find_accumulate
from trainer.builders.data import build_batch_plan, build_encoded, build_loaders, build_task, check_data
from trainer.builders.device import build_device, name_of, seed_rng, set_determinism
from trainer.builders.distributed import check_statistic, shard_run
from trainer.builders.instantiate import in_group, locate
from trainer.builders.loss import TEACHER, Teacher, build_loss, can_defer_logits
from trainer.builders.metrics import check_metrics
from trainer.builders.model import (
    architecture_documents,
    build_masks,
    build_model,
    build_unfreeze,
    check_graphs,
    check_model,
    check_unfreeze,
    choose_batching,
    compile_model,
    to_device,
)
from trainer.builders.optimizer import build_optimizer, build_schedule
from trainer.builders.perturb import build_perturbation, check_perturbation
from trainer.builders.validation import build_validation
from trainer.capture import is_keyed, restore
from trainer.checkpoint.snapshot import Snapshot
from trainer.config import schema
from trainer.config.compatibility import MASKS_WITHOUT_STATISTIC
from trainer.config.jobs import TrainJob
from trainer.config.stored import blaming_config
from trainer.data.encode import Encoded
from trainer.data.quality import DataReport
from trainer.distributed.ranks import Ranks, connect, join_ranks
from trainer.distributed.sharding import Sharding, count_shards
from trainer.durations import parse, to_steps
from trainer.ema import Ema
from trainer.errors import CheckpointError, ConfigError, format_error, raise_if_any
from trainer.layout import CONFIG, STATE, TASK
from trainer.loop import compute_gradients
from trainer.model.feature_extractor import FeatureExtractor
from trainer.model.flops import PEAKS, Peaks, Utilization, count_flops, find_peak
from trainer.model.gradient_checkpointing import checkpoint_blocks
from trainer.model.head_dropout import add_head_dropout
from trainer.optimizer.eager import eager
from trainer.precision import Precision, PrecisionName
from trainer.progress import phase
from trainer.protocols import (
    DefersLogits,
    HasBatchStatistic,
    HasTeacher,
    LanguageModelTask,
    Loss,
    MetricSchedule,
    Schedule,
    StateDict,
    Task,
)
from trainer.prune.masks import Masks
from trainer.report.logs import logs_silenced
from trainer.run import Run, RunOutputs, StepCounts
from trainer.state import TrainState
from trainer.step_rng import StepRng

_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
_SKIPPING = (*_FUSED, *map(eager, _FUSED))
"""Optimizers whose fused kernels skip updates while `found_inf` is 1."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """A run that is ready to fit, and what it was built from."""

    run: Run
    state: TrainState
    task: Task
    encoded: Encoded
    data_report: DataReport


def build_training(
    job: TrainJob,
    config_text: str,
    outputs: RunOutputs,
    snapshot: Snapshot | None,
    closing: ExitStack,
    ranks: Ranks | None = None,
) -> Training:
    """Build every part of a job; with a snapshot, restore the state that it was taken from.

    Args:
        job: The checked config.
        config_text: The config as YAML; each checkpoint contains it.
        outputs: Where the output of the run goes.
        snapshot: The checkpoint to resume from; None for a new run.
        closing: Receives what must be closed after the run.
        ranks: The processes that train together; None is this process alone.
    """
    ranks = ranks or Ranks()
    device = build_device(job.device)
    check_graphs(job, device)
    check_targets(job)
    seed_rng(job.seed)
    set_determinism(job.deterministic, device)
    duration = parse(job.train.duration)
    if snapshot is not None and duration is not None and duration.unit == "st":  # known before the data is read
        _check_duration(job, int(duration.amount), snapshot)
    with blaming_config(None if snapshot is None else snapshot.config_file):
        task = build_task(job, None if snapshot is None else snapshot.json(TASK))
    check = partial(check_names, job, task) if snapshot is None else None
    with phase("preparing the data"):
        encoded = build_encoded(job, task, fitted=snapshot is not None, check=check)
    with phase("preparing the run"):
        data_report = check_data(job, task, encoded)
        run = _build_run(job, config_text, outputs, snapshot, closing, ranks, device, task, encoded)
    state = TrainState()
    if snapshot is not None:
        _check_teacher(snapshot, run.documents)
        with phase("restoring the checkpoint"):
            restore(run, state, snapshot)
    if job.train.accumulate == "auto" and (snapshot is None or "accumulate" not in snapshot.json(STATE)):
        if ranks.size > 1:
            problem = "auto works only on one device"
            raise ConfigError(format_error("train.accumulate", problem, "Set a number", value="auto"))
        with phase("searching for the number of micro-batches"):
            find_accumulate(run, compute_gradients)
    if run.sharding is None:
        ranks.broadcast_weights(run.modules().values())
    return Training(run, state, task, encoded, data_report)


def check_names(job: TrainJob, task: Task) -> None:
    """Check metrics and the keys that name parts of the model before the data is encoded.

    The model is built once more if there are such keys.

    The run's random numbers do not change.

    Raises:
        ConfigError: Such a key names nothing, or a metric does not work.
    """
    check_metrics(job, task)
    names = [job.model.get(key) for key in ("freeze", "features", "lora")]
    if not any(names) and job.prune is None and job.perturb is None and not job.optimizer.get("overrides"):
        return
    disabled = logging.root.manager.disable
    logging.disable()  # the messages follow when the run is built
    try:
        with torch.random.fork_rng(devices=[]), logs_silenced():
            loss = build_loss(job, task, torch.device("cpu"), None)
            model = build_model(job, task, None, loss)
            build_masks(job, model, None)
            build_optimizer(job, model, loss)
            check_unfreeze(job, model)
            check_perturbation(job, task, model, loss)
    finally:
        logging.disable(disabled)


def _build_run(
    job: TrainJob,
    config_text: str,
    outputs: RunOutputs,
    snapshot: Snapshot | None,
    closing: ExitStack,
    ranks: Ranks,
    device: torch.device,
    task: Task,
    encoded: Encoded,
) -> Run:
    """Build the run from its data; the state of a snapshot is not restored."""
    plan = build_batch_plan(job, task, encoded)
    steps, schedule = _build_steps(job, plan.steps_per_epoch, snapshot)
    loss = build_loss(job, task, device, snapshot)
    model, masks, ema = _build_model(job, task, snapshot, loss, device)
    check_statistic(loss, ranks, count_shards(job.shard, ranks), job.loader.tokens)
    utilization = build_utilization(task, model, job.precision, name_of(device), ranks)
    sharding = shard_run(job, model, loss, ema, ranks, device)
    fill = sharding is not None or (isinstance(loss, HasBatchStatistic) and loss.is_batch_statistic)
    batching = choose_batching(job, model)
    loader, validation_batches = build_loaders(job, task, encoded, plan, batching, device, ranks, fill=fill)
    for batches in validation_batches.values():
        closing.callback(batches.close)
    check_model(job, model, loader.batches)
    precision = Precision(job.precision, device)
    optimizer = build_optimizer(job, model, loss)
    moved_weights, consistency = build_perturbation(job, task, model, loss, steps.per_epoch, steps.total)
    return Run(
        model=model,
        loss=loss,
        optimizer=optimizer,
        schedule=schedule,
        unfreeze=build_unfreeze(job, model, loss, steps.per_epoch, steps.total),
        precision=precision,
        ema=ema,
        masks=masks,
        loader=loader,
        batch_size=job.train.batch_size,
        ranks=ranks,
        rng=_build_rng(job, snapshot, ranks, device),
        device=device,
        max_grad_norm=job.train.max_grad_norm,
        steps=steps,
        validation=build_validation(job, task, validation_batches, precision, device, ranks),
        outputs=outputs,
        documents=_documents(config_text, task, model, loss),
        data_fingerprint=encoded.fingerprint,
        sharding=sharding,
        checks_late=_checks_late(device, precision, optimizer, sharding),
        head_masks=job.model.get("multi_sample_dropout", 1),
        consistency=consistency,
        moved_weights=moved_weights,
        utilization=utilization,
    )


def build_utilization(
    task: Task, model: nn.Module, precision: PrecisionName, device_name: str, ranks: Ranks, peaks: Peaks = PEAKS
) -> Utilization | None:
    """Build what computes the MFU of a run; None if a device's peak or the FLOPs of the model are not known.

    Args:
        task: The task.
        model: The complete model, before it is divided into shards.
        precision: The precision of the forward and backward pass.
        device_name: The name of this process's device.
        ranks: The processes that train together.
        peaks: The peaks that are known.
    """
    peak = find_peak(device_name, precision, peaks)
    total, unknown = ranks.sum(peak or 0.0, peak is None)
    info = task.info()
    image = (info.image_channels or 1, *info.image_size) if info.image_size else None
    if unknown or isinstance(model, FeatureExtractor):
        return None
    flops = count_flops(model, image, task if isinstance(task, LanguageModelTask) else None)
    return None if flops is None else Utilization(flops, total)


def _checks_late(
    device: torch.device, precision: Precision, optimizer: torch.optim.Optimizer, sharding: Sharding | None
) -> bool:
    """Return whether a run may check the values of a step one step later: only a GPU makes a step wait for them.

    In float16 the loss scale of the next step depends on them.
    """
    skips = type(optimizer) in _SKIPPING and all(group.get("fused") for group in optimizer.param_groups)
    return device.type == "cuda" and precision.name != "fp16" and skips and sharding is None


def _build_rng(job: TrainJob, snapshot: Snapshot | None, ranks: Ranks, device: torch.device) -> StepRng:
    """Build the random numbers of the forward passes; a run of an earlier version keeps drawing them in sequence.

    Raises:
        ConfigError: Such a run is resumed on several devices, which would draw other numbers.
    """
    keyed = snapshot is None or is_keyed(snapshot)
    if not keyed and ranks.size > 1:
        problem = "an earlier version started this run, which can resume only on one device"
        raise ConfigError(format_error("devices", problem, "Set devices=1", value=ranks.size))
    return StepRng(job.seed, device, keyed=keyed)


def _build_steps(job: TrainJob, steps_per_epoch: int, snapshot: Snapshot | None) -> tuple[StepCounts, Schedule]:
    """Build the schedule, and count the steps between the evaluations that it follows, if any."""
    steps = count_steps(job, steps_per_epoch)
    if snapshot is not None:
        _check_duration(job, steps.total, snapshot)
    schedule = build_schedule(job, steps.per_epoch, steps.total)
    if isinstance(schedule, MetricSchedule):
        steps = replace(steps, schedule_eval_every=schedule.every_steps)
    return steps, schedule


def _build_model(
    job: TrainJob, task: Task, snapshot: Snapshot | None, loss: Loss, device: torch.device
) -> tuple[nn.Module, Masks, Ema | None]:
    """Build the model on its device, with the masks of its pruned weights and its average."""
    model = to_device(job, build_model(job, task, snapshot, loss), device)
    masks = build_masks(job, model, snapshot)
    if isinstance(model, DefersLogits):
        model.defer_logits = can_defer_logits(job, task, model, loss)
    ema = None if job.ema.decay is None else Ema(model, job.ema.decay, loss)
    if job.model.get("head_dropout"):
        if job.model["multi_sample_dropout"] > 1 and isinstance(loss, HasBatchStatistic) and loss.is_batch_statistic:
            remedy = "Set model.multi_sample_dropout=1"
            raise ConfigError(format_error("loss", MASKS_WITHOUT_STATISTIC, remedy, value=job.loss["_target_"]))
        with in_group("model"):
            add_head_dropout(model, job.model["head_dropout"], job.model["multi_sample_dropout"], task.inputs)
    with in_group("model"):
        checkpoint_blocks(model, job.model.get("gradient_checkpointing", "none"))
    if job.compile:  # after the EMA copied the model as it was before
        compile_model(job, task, model, device)
    return model, masks, ema


def join_devices(job: TrainJob, task_state: StateDict | None) -> Ranks:
    """Join the processes that train a job together, each with its device.

    The data is encoded before: no process that waits for another must wait longer because one encodes. On a machine,
    one process encodes and the others read the result.

    Args:
        job: The checked config.
        task_state: The state of the task in the checkpoint that the job resumes from; None for a new run.
    """
    store = connect(job.launch.timeout)
    device = build_device(job.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    check_targets(job)
    seed_rng(job.seed)
    set_determinism(job.deterministic, device)
    with logs_silenced():
        # Warnings are repeated when the run reads the cache.
        task = build_task(job, task_state)
        check = partial(check_names, job, task) if task_state is None else None
        build_encoded(job, task, fitted=task_state is not None, check=check)
    return join_ranks("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", job.launch.timeout, store)


def check_targets(job: TrainJob) -> None:
    """Check that all plugged-in parts can be imported, before the data is read.

    Raises:
        ConfigError: Some cannot be imported; all of them are listed.
    """
    errors: list[str] = []
    for group in schema.groups(TrainJob):
        config = getattr(job, group)
        if config is not None and not config["_target_"].startswith("trainer."):
            try:
                locate(group, config)
            except ConfigError as error:
                errors += error.messages
    for number, observer in enumerate(job.observers):
        try:
            locate(f"observers.{number}", observer)
        except ConfigError as error:
            errors += error.messages
    raise_if_any(*errors)


def count_steps(job: TrainJob, steps_per_epoch: int) -> StepCounts:
    """Convert the durations of a job to steps."""
    total = to_steps(job.train.duration, steps_per_epoch, key="train.duration")

    def steps_of(duration: int | str, key: str) -> int:
        return to_steps(duration, steps_per_epoch, total, key=key)

    return StepCounts(
        total=total,
        per_epoch=steps_per_epoch,
        log_every=steps_of(job.train.log_every, "train.log_every"),
        eval_every=steps_of(job.train.eval_every, "train.eval_every"),
        save_every=steps_of(job.checkpoint.every, "checkpoint.every"),
        histograms_every=None
        if job.logger.histograms is None
        else steps_of(job.logger.histograms, "logger.histograms"),
        patience=None if job.train.patience is None else steps_of(job.train.patience, "train.patience"),
    )


def _documents(config_text: str, task: Task, model: nn.Module, loss: Loss) -> dict[str, str]:
    """Return the text files of a checkpoint that stay the same throughout a run."""
    teacher = loss.teacher_model if isinstance(loss, HasTeacher) else None
    return {
        CONFIG: config_text,
        TASK: json.dumps(task.state_dict(), ensure_ascii=False) + "\n",
        **architecture_documents(model),
        **({TEACHER: teacher.document()} if isinstance(teacher, Teacher) else {}),
    }


def _check_duration(job: TrainJob, total_steps: int, snapshot: Snapshot) -> None:
    """Raise ConfigError if the run would end before the checkpoint's step."""
    if snapshot.step > total_steps:
        problem = f"ends at step {total_steps}, before the checkpoint's step {snapshot.step}"
        remedy = "Leave it out, give a longer one, or resume an earlier checkpoint: resume=RUN/checkpoints/step-N"
        raise ConfigError(format_error("train.duration", problem, remedy, value=job.train.duration))


def _check_teacher(snapshot: Snapshot, documents: Mapping[str, str]) -> None:
    """Raise CheckpointError if the teacher's weights are not the ones that the checkpoint was trained with."""
    if snapshot.documents.get(TEACHER) != documents.get(TEACHER):
        problem = "the teacher's best checkpoint has changed since this checkpoint was saved"
        raise CheckpointError(format_error("loss.teacher", problem, "Restore it, or start a new run"))
