"""A training job's parts put together."""

from __future__ import annotations

import json
import logging
import os
import random
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from trainer.autopsy import Findings, examine, not_finite_parameters
from trainer.build import parts
from trainer.checkpoint.snapshot import Snapshot
from trainer.config.duration import to_steps
from trainer.config.schema import TrainJob
from trainer.data.encode import Encoded
from trainer.data.loader import Batches, EvaluationBatches, TrainLoader
from trainer.data.plan import BatchPlan
from trainer.ema import Ema
from trainer.errors import DivergedError
from trainer.evaluate import evaluate, score
from trainer.loop import Cadence, Run
from trainer.precision import Precision
from trainer.protocols import Batch, Report, Task
from trainer.resume import capture, restore
from trainer.state import Score, TrainState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Training:
    """A run ready to fit, and what it was made from."""

    run: Run
    state: TrainState
    task: Task
    encoded: Encoded


@dataclass(frozen=True)
class Length:
    """How long a run is and how often things happen in it, in optimizer steps."""

    steps_per_epoch: int
    total_steps: int
    cadence: Cadence


def build_training(
    job: TrainJob,
    config_text: str,
    submit: Callable[[Snapshot], None],
    keep_findings: Callable[[Findings], str],
    open_report: Callable[[Length], Report],
    snapshot: Snapshot | None,
    closing: ExitStack,
) -> Training:
    """Makes every part of a job and, with a snapshot, puts them where it was taken.

    Args:
        job: The checked config.
        config_text: The config as YAML, to go into each checkpoint.
        submit: Takes the checkpoints.
        keep_findings: Keeps what is known of a step that diverged; says where.
        open_report: The report of a run of known length.
        snapshot: Where to go on from; None starts anew.
        closing: Ends what the run holds open.
    """
    device = parts.build_device(job.device)
    seed_generators(job.seed, device)
    task = parts.build_task(job, None if snapshot is None else json.loads(snapshot.documents["task.json"]))
    encoded = parts.build_encoded(job, task, fitted=snapshot is not None)
    task.check(encoded.splits)
    plan = BatchPlan(
        len(encoded.splits["train"]), job.train.batch_size, job.seed, parts.plan_lengths(job, task, encoded)
    )
    length = run_length(job, plan.steps_per_epoch)
    model = parts.build_model(job, task, encoded, device)
    loss = parts.build_loss(job, task, device)
    ema = None if job.ema.decay is None else Ema(model, job.ema.decay)
    if job.compile:
        parts.compile_model(model, device)
    precision = Precision(job.precision, device)
    options = parts.loader_options(job, device)
    monitor, higher_is_better = parts.build_monitor(job, task)
    report = open_report(length)
    validation = EvaluationBatches(
        Batches(encoded.splits["validation"], task, job.loader.batching, job.seed), job.loader.eval_batch_size, options
    )
    closing.callback(validation.close)
    models = {"raw": model} if ema is None else {"raw": model, "ema": ema.module}

    def measure(measured: torch.nn.Module) -> dict[str, float]:
        return evaluate(measured, loss, validation, task.metrics(), precision=precision, device=device)

    def score_step(state: TrainState) -> Score:
        def log(values: Mapping[str, float | str]) -> None:
            report.log("eval", step=state.step, epoch=state.step / plan.steps_per_epoch, values=values)

        return score(models, monitor, higher_is_better, measure, log)

    def autopsy(step: int, loss: float, grad_norm: float, group: list[Batch]) -> str:
        return keep_findings(examine(run, step, loss, grad_norm, group))

    def save(state: TrainState) -> None:
        # A checkpoint that nothing can go on from must not take the place of a good one.
        if names := not_finite_parameters(run):
            shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            problem = f"step {state.step}: the run diverged: {shown} not finite; no checkpoint was taken."
            remedy = "  Lower optimizer.lr, lengthen scheduler.warmup or set train.max_grad_norm, and start a new run."
            raise DivergedError(problem, remedy, keep_findings(examine(run, state.step, None, None, [])))
        submit(capture(run, state, documents=documents, data=encoded.fingerprint))
        values = {"best": state.best_step == state.step}
        report.log("checkpoint", step=state.step, epoch=state.step / plan.steps_per_epoch, values=values)

    documents = {"config.yaml": config_text, "task.json": json.dumps(task.state_dict(), ensure_ascii=False) + "\n"}
    run = Run(
        model=model,
        loss=loss,
        optimizer=parts.build_optimizer(job, model, loss),
        schedule=parts.build_schedule(job, plan.steps_per_epoch, length.total_steps),
        precision=precision,
        ema=ema,
        loader=TrainLoader(
            Batches(encoded.splits["train"], task, job.loader.batching, job.seed), plan, job.train.accumulate, options
        ),
        device=device,
        max_grad_norm=job.train.max_grad_norm,
        total_steps=length.total_steps,
        steps_per_epoch=plan.steps_per_epoch,
        cadence=length.cadence,
        score=score_step,
        save=save,
        autopsy=autopsy,
        report=report,
    )
    state = TrainState()
    if snapshot is not None:
        restore(run, state, snapshot, data=encoded.fingerprint)
    return Training(run, state, task, encoded)


def run_length(job: TrainJob, steps_per_epoch: int) -> Length:
    """The durations of a job in steps."""
    total = to_steps(job.train.duration, steps_per_epoch, key="train.duration")
    cadence = Cadence(
        log=to_steps(job.train.log_every, steps_per_epoch, total, key="train.log_every"),
        evaluate=to_steps(job.train.eval_every, steps_per_epoch, total, key="train.eval_every"),
        save=to_steps(job.checkpoint.every, steps_per_epoch, total, key="checkpoint.every"),
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
