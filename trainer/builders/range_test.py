"""The learning rate from a range test: it rises from step to step, and the rate at which the loss falls most is taken.

Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3,
https://arxiv.org/abs/1506.01186.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.builders.training import build_training
from trainer.config.jobs import TrainJob
from trainer.distributed.ranks import Ranks
from trainer.errors import ConfigError, DivergedError, Interrupted, format_error
from trainer.loop import fit
from trainer.run import RunOutputs, StepCounts

_LOWEST, _HIGHEST = 1e-6, 10.0
_STEPS = 100
_SMOOTHING = 0.9
_RISE = 4.0
"""The test stops if the smoothed loss is this many times its lowest value."""
_REACH = 5
"""Steps on either side over which a fall is measured, 0.7 decades in all: the loss of single steps is noisy."""


@dataclass
class RangeTest:
    """The curve of a range test, which is also the report of the test's run.

    Attributes:
        lr: The learning rate of each step.
        loss: The loss of each step, before its update.
        smoothed: The exponential average of the losses so far, corrected for the bias of its start.
    """

    lr: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Add a training step to the curve."""
        if event == "train":
            self.lr.append(rising_lr(step - 1))
            self.loss.append(values["loss"])
            self.smoothed = smooth(self.loss)

    def has_risen(self) -> bool:
        """Return whether the smoothed loss has risen far above its minimum."""
        return bool(self.smoothed) and self.smoothed[-1] > _RISE * min(self.smoothed)


def range_test(job: TrainJob, ranks: Ranks | None = None) -> RangeTest:
    """Train a new model for at most 100 steps with a rising learning rate; only the curve is kept.

    Args:
        job: The checked config; its learning rate is ignored.
        ranks: The processes that train together; None is this process alone.
    """
    curve = RangeTest()
    with ExitStack() as closing:
        trial = replace(job, optimizer={**job.optimizer, "lr": 1.0}, ema=replace(job.ema, decay=None))
        training = build_training(trial, "", RunOutputs(curve), None, closing, ranks)
        steps = StepCounts(_STEPS, training.run.steps.per_epoch, log_every=1, eval_every=None, save_every=None)
        run = replace(training.run, schedule=rising_lr, steps=steps)
        with suppress(DivergedError, Interrupted):
            fit(run, training.state, curve.has_risen)
    return curve


def rising_lr(step: int) -> float:
    """Return the learning rate of a step: from 1e-6 to 10, by the same factor at each of 100 steps."""
    return float(_LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1)))


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the exponential average at each loss, divided by the sum of its weights."""
    averages: list[float] = []
    total = weight = 0.0
    for loss in losses:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * loss
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        averages.append(total / weight)
    return averages


def steepest_lr(curve: RangeTest) -> float:
    """Return the learning rate in the middle of the steps over which the smoothed loss falls most, before its minimum.

    The rate rises by the same factor at each step, so equally many steps are equally wide on a logarithmic scale.

    Raises:
        ConfigError: The loss never fell.
    """
    lowest = min(range(len(curve.smoothed)), key=curve.smoothed.__getitem__, default=0)
    falls = {
        step: curve.smoothed[step - _REACH] - curve.smoothed[step + _REACH]
        for step in range(_REACH, min(lowest + 1, len(curve.smoothed) - _REACH))
    }
    steepest = max(falls, key=falls.__getitem__, default=0)
    if falls.get(steepest, 0.0) <= 0:
        remedy = "Give a number; the curve is in lr_range.json"
        raise ConfigError(format_error("optimizer.lr", "no learning rate lowered the loss", remedy, value="auto"))
    return curve.lr[steepest]
