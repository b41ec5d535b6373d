"""A training job's parts put together."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from trainer.builders import parts
from trainer.builders.milestones import looking, saving, scoring
from trainer.builders.models import architecture_documents, batching_of, build_thaw, make_model, placed
from trainer.builders.pruning import build_masks
from trainer.builders.teacher import DOCUMENT, Teacher
from trainer.checkpoint.snapshot import Snapshot
from trainer.config.duration import to_steps
from trainer.config.jobs import TrainJob
from trainer.data.checks import DataReport, check
from trainer.data.encode import Encoded
from trainer.data.loader import Batches, EvaluationBatches, TrainLoader
from trainer.data.plan import BatchPlan
from trainer.divergence import DivergenceReport
from trainer.ema import Ema
from trainer.errors import CheckpointError, ConfigError, DataError, format_error
from trainer.loop import Cadence, Run
from trainer.precision import Precision
from trainer.protocols import Loss, Report, Task
from trainer.prune.masks import Masks
from trainer.resume import restore
from trainer.state import TrainState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """A run ready to fit, and what it was made from."""

    run: Run
    state: TrainState
    task: Task
    encoded: Encoded
    checked: DataReport


@dataclass(frozen=True)
class Length:
    """How long a run is and how often things happen in it, in optimizer steps."""

    steps_per_epoch: int
    total_steps: int
    cadence: Cadence


@dataclass(frozen=True)
class RunOutputs:
    """Where goes what comes out of a run.

    Attributes:
        open_report: The report of a run of known length.
        submit: Takes the checkpoints.
        keep_findings: Keeps what is known of a step that diverged; says where.
    """

    open_report: Callable[[Length], Report]
    submit: Callable[[Snapshot], None] = lambda snapshot: None
    keep_findings: Callable[[DivergenceReport], str] = lambda findings: ""


@dataclass(frozen=True)
class _Data:
    """What is learnt, from what, in which order."""

    task: Task
    encoded: Encoded
    checked: DataReport
    plan: BatchPlan


def build_training(
    job: TrainJob, config_text: str, outlets: RunOutputs, snapshot: Snapshot | None, closing: ExitStack
) -> Training:
    """Makes every part of a job and, with a snapshot, puts them where it was taken.

    Args:
        job: The checked config.
        config_text: The config as YAML, to go into each checkpoint.
        outlets: Where goes what comes out of the run.
        snapshot: Where to go on from; None starts anew.
        closing: Ends what the run holds open.
    """
    device = parts.build_device(job.device)
    parts.check_targets(job)
    seed_generators(job.seed, device)
    data = _build_data(job, snapshot)
    length = run_length(job, data.plan.steps_per_epoch)
    if snapshot is not None:
        _check_length(job, length, snapshot)
    schedule = parts.build_schedule(job, length.steps_per_epoch, length.total_steps)
    loss = parts.build_loss(job, data.task, device)
    model, masks, ema = _build_model(job, data, loss, snapshot, device)
    loader, held_out = _build_loaders(job, data, model, device)
    closing.callback(held_out.close)
    documents = _documents(config_text, data.task, model, loss)
    run = Run(
        model=model,
        loss=loss,
        optimizer=parts.build_optimizer(job, model, loss),
        schedule=schedule,
        precision=Precision(job.precision, device),
        ema=ema,
        masks=masks,
        loader=loader,
        device=device,
        max_grad_norm=job.train.max_grad_norm,
        total_steps=length.total_steps,
        steps_per_epoch=length.steps_per_epoch,
        cadence=replace(length.cadence, look=getattr(schedule, "every_steps", None)),
        thaw=build_thaw(job, model, loss, length.steps_per_epoch, length.total_steps),
        score=scoring(job, data.task, held_out),
        save=saving(outlets.submit, outlets.keep_findings, documents, data.encoded.fingerprint),
        autopsy=looking(outlets.keep_findings),
        report=outlets.open_report(length),
    )
    state = TrainState()
    if snapshot is not None:
        _check_teacher(snapshot, documents)
        restore(run, state, snapshot, data=data.encoded.fingerprint)
    return Training(run, state, data.task, data.encoded, data.checked)


def _build_data(job: TrainJob, snapshot: Snapshot | None) -> _Data:
    """The task, fitted, the splits it has encoded, and the batches they are learnt in."""
    task = parts.build_task(job, None if snapshot is None else json.loads(snapshot.documents["task.json"]))
    encoded = parts.build_encoded(job, task, fitted=snapshot is not None)
    checked = check_data(job, task, encoded)
    lengths = parts.plan_lengths(job, task, encoded)
    plan = BatchPlan(len(encoded.splits["train"]), job.train.batch_size, job.seed, lengths)
    return _Data(task, encoded, checked, plan)


def _build_model(
    job: TrainJob, data: _Data, loss: Loss, snapshot: Snapshot | None, device: torch.device
) -> tuple[nn.Module, Masks, Ema | None]:
    """The model, on the device, what of it is pruned, and its average."""
    model = make_model(job, data.task, snapshot, num_outputs=getattr(loss, "in_features", None))
    model = placed(job, model, device)
    masks = build_masks(job, model, snapshot)
    ema = None if job.ema.decay is None else Ema(model, job.ema.decay, loss)
    # The average is of the model as it was before it was compiled.
    if job.compile:
        parts.compile_model(model, device)
    return model, masks, ema


def _build_loaders(
    job: TrainJob, data: _Data, model: nn.Module, device: torch.device
) -> tuple[TrainLoader, EvaluationBatches]:
    """The batches of the training split, which the model takes, and those of the validation split."""
    batching = batching_of(job, model)
    options = parts.loader_options(job, device, batching)
    train, validation = (
        Batches(data.encoded.splits[split], data.task, batching, job.seed, training=split == "train")
        for split in ("train", "validation")
    )
    parts.check_model(job, model, train)
    loader = TrainLoader(train, data.plan, job.train.accumulate, options)
    return loader, EvaluationBatches(validation, job.loader.eval_batch_size, options)


def _documents(config_text: str, task: Task, model: nn.Module, loss: Loss) -> dict[str, str]:
    """The texts of a checkpoint that stay the same throughout a run."""
    teacher = getattr(loss, "teacher_model", None)
    return {
        "config.yaml": config_text,
        "task.json": json.dumps(task.state_dict(), ensure_ascii=False) + "\n",
        **architecture_documents(model),
        **({DOCUMENT: teacher.document()} if isinstance(teacher, Teacher) else {}),
    }


def _check_length(job: TrainJob, length: Length, snapshot: Snapshot) -> None:
    if snapshot.step > length.total_steps:
        problem = f"ends at step {length.total_steps}, and the checkpoint to go on from is of step {snapshot.step}"
        remedy = "Leave it out or give a longer one; an earlier checkpoint is named by resume=RUN/checkpoints/step-N"
        raise ConfigError(format_error("train.duration", problem, remedy, value=job.train.duration))


def _check_teacher(snapshot: Snapshot, documents: Mapping[str, str]) -> None:
    if snapshot.documents.get(DOCUMENT) != documents.get(DOCUMENT):
        problem = "its best weights are others than those that taught when the checkpoint was taken"
        raise CheckpointError(format_error("loss.teacher", problem, "Bring them back, or start a new run"))


def check_data(job: TrainJob, task: Task, encoded: Encoded) -> DataReport:
    """Looks at the encoded splits and warns of what is wrong with them.

    Raises:
        DataError: Something is, and the job is strict.
    """
    checked = check(encoded.splits)
    warnings = [*task.check(encoded.splits), *checked.warnings()]
    faults = [*encoded.warnings, *warnings]
    if faults and job.data.get("strict"):
        raise DataError(*(f"data.strict: {fault}" for fault in faults))
    # What the source warned of was told when it was read.
    for warning in warnings if encoded.fresh else faults:
        logger.warning(warning)
    return checked


def run_length(job: TrainJob, steps_per_epoch: int) -> Length:
    """The durations of a job in steps."""
    total = to_steps(job.train.duration, steps_per_epoch, key="train.duration")
    patience = job.train.patience
    cadence = Cadence(
        log=to_steps(job.train.log_every, steps_per_epoch, total, key="train.log_every"),
        evaluate=to_steps(job.train.eval_every, steps_per_epoch, total, key="train.eval_every"),
        save=to_steps(job.checkpoint.every, steps_per_epoch, total, key="checkpoint.every"),
        patience=None if patience is None else to_steps(patience, steps_per_epoch, total, key="train.patience"),
    )
    return Length(steps_per_epoch, total, cadence)


def seed_generators(seed: int, device: torch.device) -> None:
    """Seeds every global generator, and asks CUDA for kernels whose results do not vary from run to run."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
