"""A training run: its parts, its length, its validation and its outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoint.snapshot import Snapshot
from trainer.distributed.ranks import Ranks
from trainer.distributed.sharding import Sharding
from trainer.ema import Ema
from trainer.model.flops import Utilization
from trainer.perturb.moved_weights import MovedWeights
from trainer.precision import Precision
from trainer.protocols import Batch, ComparesOutputs, Loader, Loss, Report, Schedule
from trainer.prune.masks import Masks
from trainer.state import Score
from trainer.step_rng import StepRng


@dataclass(frozen=True)
class StepCounts:
    """The length of a run and its intervals, in optimizer steps.

    Logging, evaluating and saving happen at every multiple of their interval and at the last step; None is never.

    Attributes:
        total: Steps of the run.
        per_epoch: Steps of one pass over the data.
        log_every: Steps between log lines.
        eval_every: Steps between evaluations.
        save_every: Steps between checkpoints; the best weights are saved in addition.
        schedule_eval_every: Steps between the evaluations for a schedule that follows the metric.
        histograms_every: Steps between histograms of parameters and gradients.
        patience: The run stops at the evaluation at which the best score is this many steps old; None never stops it.
    """

    total: int
    per_epoch: int
    log_every: int | None
    eval_every: int | None
    save_every: int | None
    schedule_eval_every: int | None = None
    patience: int | None = None
    histograms_every: int | None = None

    def is_due(self, interval: int | None, step: int) -> bool:
        """Return whether something with this interval happens after `step` steps."""
        return interval is not None and (step % interval == 0 or step == self.total)

    def evaluates_at(self, step: int) -> bool:
        """Return whether the run is evaluated after `step` steps."""
        return self.is_due(self.eval_every, step) or self.is_due(self.schedule_eval_every, step)

    def reports_at(self, step: int) -> bool:
        """Return whether something is logged or evaluated after `step` steps."""
        return self.is_due(self.log_every, step) or self.is_due(self.histograms_every, step) or self.evaluates_at(step)


@dataclass(frozen=True)
class Validation:
    """The evaluations of a run; one of them monitors it.

    Attributes:
        evaluators: For each validation split, the function from a model and its loss to the mean loss and the metrics.
        split: The split whose metric picks the best weights.
        monitor: That metric.
        find_direction: Returns True if higher is better; called at the first evaluation.
        bounds: The lowest and the highest value of the metric; infinite if no bound is known.
    """

    evaluators: Mapping[str, Callable[[nn.Module, Loss], dict[str, float]]]
    split: str
    monitor: str
    find_direction: Callable[[], bool]
    bounds: tuple[float, float] = (-math.inf, math.inf)

    @cached_property
    def higher_is_better(self) -> bool:
        """The direction of the metric."""
        return self.find_direction()

    @property
    def best_possible(self) -> float:
        """The best value that the metric can have."""
        return self.bounds[self.higher_is_better]

    def score(self, values: Mapping[str, float], weights: str) -> Score:
        """Return the score of weights with these values on the monitored split."""
        value, loss = values[self.monitor], values.get("loss")
        return Score(self.monitor, value, self.higher_is_better, weights, loss, self.split)


@dataclass(frozen=True)
class DivergenceReport:
    """The diagnosis of a step that diverged.

    Attributes:
        step: The step that was not completed or not saved, counted from 1 as in messages and events.
        report: Its numbers as JSON; a float that is not finite is the string "nan", "inf" or "-inf".
        batch: Inputs and target of each micro-batch, `<micro-batch>.inputs.<name>` and `<micro-batch>.target`.
    """

    step: int
    report: dict[str, Any]
    batch: dict[str, Tensor]


@dataclass(frozen=True)
class RunOutputs:
    """The destinations of a run's output.

    Attributes:
        report: Receives the events.
        save: Starts to write a checkpoint.
        save_divergence: Saves the diagnosis of a step that diverged; returns a line for the message that says where.
        add_histogram: Reports the distribution of a tensor at a step.
        when_saved: Calls a function once the last checkpoint is durable, perhaps on another thread.
    """

    report: Report
    save: Callable[[Snapshot], None] = lambda snapshot: None
    save_divergence: Callable[[DivergenceReport], str] = lambda divergence: ""
    when_saved: Callable[[Callable[[], None]], None] = lambda announce: announce()
    add_histogram: Callable[[str, Tensor, int], None] = lambda tag, values, step: None


@dataclass(frozen=True)
class Run:
    """The parts of a training run.

    Attributes:
        model: The model that is trained.
        loss: A sum over targets; the optimizer also trains its own parameters, if it has some.
        optimizer: Each of its groups carries `initial_lr`, the base learning rate.
        schedule: Maps a step, counted from 0, to the factor on the base learning rates.
        unfreeze: Makes frozen parameters trainable when their step comes; called with the number of completed steps.
        precision: Autocast and loss scaling.
        ema: The averaged weights of the model, and of the loss if it has some; None is off.
        masks: The weights of the model that are pruned and stay 0.
        loader: The training data.
        batch_size: Samples of a step, over all micro-batches and devices.
        ranks: The processes that train together; each has a share of every micro-batch.
        rng: The random numbers of the forward passes.
        device: The device of the model and the batches.
        max_grad_norm: Gradients with a larger 2-norm are scaled down to it; None never clips.
        steps: The length of the run and its intervals.
        validation: The evaluations of the weights.
        outputs: Where events, checkpoints and the diagnosis of a divergence go.
        documents: The text files that each checkpoint contains next to the state: config, task, architecture.
        data_fingerprint: The fingerprint of the encoded data.
        sharding: How the weights and their state are divided among the processes; None is not at all.
        checks_late: Whether the loss and the gradient of a step are checked one step later, so that no step waits for
            the device. The optimizer must skip updates while its attribute `found_inf` is 1, as torch's fused ones do.
        head_masks: Dropout masks in front of the model's head in training: the output has an axis for several of them.
        consistency: What outputs of two dropout masks must share; None is a single pass.
        moved_weights: Moves weights to where the loss is larger, for a second part of each step; None does not.
        utilization: Computes the share of the devices' peak that is used; None if the peak or the need is not known.
    """

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    unfreeze: Callable[[int], None]
    precision: Precision
    ema: Ema | None
    masks: Masks
    loader: Loader
    batch_size: int
    ranks: Ranks
    rng: StepRng
    device: torch.device
    max_grad_norm: float | None
    steps: StepCounts
    validation: Validation
    outputs: RunOutputs
    documents: Mapping[str, str]
    data_fingerprint: str
    sharding: Sharding | None = None
    checks_late: bool = False
    head_masks: int = 1
    consistency: ComparesOutputs | None = None
    moved_weights: MovedWeights | None = None
    utilization: Utilization | None = None

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Report an event at a step."""
        self.outputs.report.log(event, step=step, epoch=step / self.steps.per_epoch, values=values)

    def forward(self, step: int, batch: Batch, stream: int = 0) -> Tensor:
        """Return the model's output for a micro-batch on the device; called again, it has the same bits.

        Another `stream` draws other random numbers, as of dropout.
        """
        self.rng.start(step, batch.piece, stream)
        with self.precision.autocast():
            output: Tensor = self.model(**batch.inputs)
        return output

    @property
    def passes(self) -> tuple[int, int]:
        """The forward and backward passes of a step, and the step, counted from 0, from which there are so many."""
        if self.moved_weights is not None:
            return self.moved_weights.passes, self.moved_weights.method.start_steps
        return (1, 0) if self.consistency is None else (2, self.consistency.start_steps)

    def passes_at(self, step: int) -> int:
        """Return the forward and backward passes of a step, counted from 0; one comes before all others."""
        count, start = self.passes
        return count if step >= start else 1

    def modules(self) -> dict[str, nn.Module]:
        """Return the modules of the run by name: `model` and, if present, `loss`, `ema` and `ema_loss`."""
        modules = {"model": self.model}
        if isinstance(self.loss, nn.Module):
            modules["loss"] = self.loss
        if self.ema is not None:
            modules["ema"] = self.ema.module
            if isinstance(self.ema.loss, nn.Module) and self.ema.loss is not self.loss:
                modules["ema_loss"] = self.ema.loss
        return modules
