"""The training loop. It owns no state: whatever changes lives in a part of the `Run` or in the `TrainState`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from trainer.ema import Ema
from trainer.errors import DivergedError, Interrupted
from trainer.precision import Precision
from trainer.protocols import Batch, Loss, Report, Stateful
from trainer.prune.masks import Masks
from trainer.state import Score, TrainState
from trainer.targets import count_targets, loss_of


class Loader(Protocol):
    """The micro-batches of each optimizer step from `start` to before `stop`."""

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]: ...


class Schedule(Protocol):
    """Step, from 0, to the factor on the base learning rates."""

    def __call__(self, step: int, /) -> float: ...


@runtime_checkable
class MetricSchedule(Stateful, Protocol):
    """A schedule that follows the monitored metric, which it looks at every `every_steps` steps."""

    every_steps: int

    def __call__(self, step: int, /) -> float: ...

    def observe(self, value: float, higher_is_better: bool) -> None:
        """Takes the score of a look."""
        ...


@dataclass(frozen=True)
class Cadence:
    """Every how many steps something happens; all of it happens at the last step too."""

    log: int
    evaluate: int
    save: int
    look: int | None = None
    """For a schedule that follows the scores: when it is evaluated for that, too."""
    patience: int | None = None
    """So many steps without a better score, seen at an evaluation, end the run."""


@dataclass(frozen=True)
class Run:
    """The parts of a training run.

    Attributes:
        model: What is trained.
        loss: A sum over targets; its own parameters, if any, are the optimizer's too.
        optimizer: Its groups carry `initial_lr`, the base learning rate.
        schedule: Step, from 0, to the factor on the base learning rates; a `MetricSchedule` one follows the scores.
        precision: Autocast and loss scaling.
        ema: The averaged weights of the model, and of a loss that has some; None is off.
        masks: What of the model's weights is pruned, and stays 0.
        loader: The data.
        device: Where model and batches meet.
        max_grad_norm: Gradients of a larger 2-norm are scaled down to it; None never clips.
        total_steps: Optimizer updates in all.
        steps_per_epoch: Optimizer updates of one pass over the data.
        cadence: When to log, evaluate and save.
        score: Evaluates the weights, logs that, and scores the better of raw and averaged ones.
        thaw: Makes parameters trainable that are frozen up to a step; told the updates done.
        save: Takes a checkpoint.
        autopsy: Keeps what is known of a step that diverged, given the step, its loss, its gradient's norm and its
            micro-batches; says where.
        report: Where events go.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    precision: Precision
    ema: Ema | None
    masks: Masks
    loader: Loader
    device: torch.device
    max_grad_norm: float | None
    total_steps: int
    steps_per_epoch: int
    cadence: Cadence
    thaw: Callable[[int], None]
    score: Callable[[Run, TrainState], Score]
    save: Callable[[Run, TrainState], None]
    autopsy: Callable[[Run, int, float, float, list[Batch]], str]
    report: Report


def fit(run: Run, state: TrainState, stopping: Callable[[], bool]) -> None:
    """Trains from `state.step` to the end of the run: its last step, or an evaluation at which patience has run out.

    Args:
        run: The parts.
        state: Where to start; moved along.
        stopping: Asked after each step; when true, a checkpoint is taken and the run leaves.

    Raises:
        Interrupted: The run stopped early, between two steps, with a checkpoint taken.
        DivergedError: The loss or a gradient is not finite; the weights are those of the step before. Or weights that
            were to be saved are not.
    """

    def due(every: int | None) -> bool:
        return every is not None and (state.step % every == 0 or state.step == run.total_steps)

    def given_up() -> bool:
        patience = run.cadence.patience
        return patience is not None and state.score is not None and state.steps_since_best() >= patience

    if given_up():
        return
    run.model.train()
    started, samples = time.perf_counter(), 0
    for group in run.loader.steps(state.step, run.total_steps):
        run.thaw(state.step)
        lr = set_learning_rate(run.optimizer, run.schedule(state.step))
        loss, grad_norm = update(run, state.step, group)
        if run.ema is not None:
            run.ema.update(run.model, run.loss)
        state.advance()

        samples += sum(batch.num_samples for batch in group)
        if due(run.cadence.log):
            rate = samples / (time.perf_counter() - started)
            log_step(run, state, {"loss": loss, "lr": lr, "grad_norm": grad_norm, "samples_per_second": rate})
        improved = (due(run.cadence.evaluate) or due(run.cadence.look)) and state.take(run.score(run, state))
        stop, over = stopping(), given_up()
        if improved or stop or over or due(run.cadence.save):
            run.save(run, state)
        if over:
            return
        if stop and state.step < run.total_steps:
            raise Interrupted(f"stopped after step {state.step} of {run.total_steps}")
        if due(run.cadence.log) or due(run.cadence.evaluate):
            started, samples = time.perf_counter(), 0


def update(run: Run, step: int, group: list[Batch]) -> tuple[float, float]:
    """One optimizer update from the micro-batches of a step; returns its loss and the norm of its gradient.

    With float16 an update whose gradients overflow is tried again with a smaller scale: nothing is skipped.
    """
    while True:
        loss, grad_norm = gradients(run, group)
        if not isfinite(loss) or not (isfinite(grad_norm) or run.precision.can_lower_scale):
            where = run.autopsy(run, step + 1, loss, grad_norm, group)
            raise DivergedError(diverged(step, loss, grad_norm, group), where)
        if run.precision.step(run.optimizer):
            run.masks.zero_weights()
            return loss, grad_norm


def gradients(run: Run, group: list[Batch]) -> tuple[float, float]:
    """Sets the gradients to those of the mean loss over all targets of the group, clipped.

    Each micro-batch's sum is divided by the group's number of targets, so that k micro-batches are one batch k times
    as large, however their targets are spread. Returns that loss and the gradient's 2-norm before clipping.
    """
    run.optimizer.zero_grad(set_to_none=True)
    # On the host, before the copy to the device: counting waits for nothing.
    num_targets = max(1.0, sum(count_targets(run.loss, batch) for batch in group))
    total = torch.zeros((), device=run.device)
    for host_batch in group:
        batch = host_batch.to(run.device)
        with run.precision.autocast():
            output = run.model(**batch.inputs)
        loss = loss_of(run.loss, output, batch) / num_targets
        run.precision.backward(loss)
        total += loss.detach()
    run.masks.zero_gradients()
    run.precision.unscale(run.optimizer)
    parameters = [parameter for entry in run.optimizer.param_groups for parameter in entry["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if run.max_grad_norm is not None:
        # A norm that is not finite must not spread to the gradients that are: the autopsy tells them apart.
        nn.utils.clip_grads_with_norm_(parameters, run.max_grad_norm, norm.nan_to_num(0.0, 0.0))
    # The one wait of a step: nothing may be updated before it is known to be finite.
    loss_value, norm_value = torch.stack([total, norm.float()]).tolist()
    return loss_value, norm_value


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Sets each group's learning rate to `factor` times its base; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)


def log_step(run: Run, state: TrainState, values: dict[str, float]) -> None:
    """Logs the values of a training step, with float16 the scale of the loss too."""
    if run.precision.name == "fp16":
        values["scale"] = run.precision.scale
    run.report.log("train", step=state.step, epoch=state.step / run.steps_per_epoch, values=values)


def diverged(step: int, loss: float, grad_norm: float, group: list[Batch]) -> str:
    """What is said of a step that diverged: its loss, its gradient, its samples, and what to do."""
    ids = [sample for batch in group for sample in batch.ids]
    shown = ", ".join(map(str, ids[:16])) + (f", ... ({len(ids)} in all)" if len(ids) > 16 else "")
    return (
        f"step {step + 1}: the run diverged: loss {loss}, gradient norm {grad_norm}; the weights were not updated.\n"
        f"  samples of the step (positions in the training split): {shown}\n"
        "  Lower optimizer.lr, lengthen scheduler.warmup or set train.max_grad_norm, and start a new run."
    )
