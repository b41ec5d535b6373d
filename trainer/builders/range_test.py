"""The learning rate by a range test: it rises from step to step, and the loss says where it falls fastest.

Source: Smith 2017, "Cyclical learning rates for training neural networks", section 3.3,
https://arxiv.org/abs/1506.01186.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import Any

from trainer.builders.training import RunOutputs, build_training
from trainer.config.jobs import TrainJob
from trainer.errors import ConfigError, DivergedError, Interrupted, format_error
from trainer.loop import Cadence, Run, fit
from trainer.state import Score, TrainState

_LOWEST, _HIGHEST = 1e-6, 10.0
_STEPS = 100
_SMOOTHING = 0.9
_RISEN = 4.0
"""The test ends where the smoothed loss is so many times its lowest value."""
_REACH = 5
"""Steps to either side that a fall is measured over, 0.7 decades in all: the loss of single steps is noise."""


@dataclass
class RangeTest:
    """The curve of a range test; the report of the run that it is.

    Attributes:
        lr: The learning rate of each step.
        loss: The loss of each step, before its update.
        smoothed: The exponential average of the losses so far, without the bias of its start.
    """

    lr: list[float] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        if event == "train":
            self.lr.append(rising(step - 1))
            self.loss.append(values["loss"])
            self.smoothed = smoothed(self.loss)

    def has_risen(self) -> bool:
        return bool(self.smoothed) and self.smoothed[-1] > _RISEN * min(self.smoothed)


def range_test(job: TrainJob) -> RangeTest:
    """Trains a fresh model for at most 100 steps with a rising learning rate; nothing of it is kept but the curve.

    Args:
        job: The checked config; its learning rate is left aside.
    """
    curve = RangeTest()
    with ExitStack() as closing:
        trial = replace(job, optimizer={**job.optimizer, "lr": 1.0}, ema=replace(job.ema, decay=None))
        training = build_training(trial, "", RunOutputs(curve), None, closing)
        run = replace(
            training.run,
            schedule=rising,
            total_steps=_STEPS,
            cadence=Cadence(log=1, evaluate=_STEPS, save=_STEPS),
            score=_no_score,
            save=lambda run, state: None,
        )
        with suppress(DivergedError, Interrupted):
            fit(run, training.state, curve.has_risen)
    return curve


def rising(step: int) -> float:
    """The learning rate of a step: from 1e-6 to 10, by the same factor at each of 100 steps."""
    return float(_LOWEST * (_HIGHEST / _LOWEST) ** (step / (_STEPS - 1)))


def smoothed(losses: Sequence[float]) -> list[float]:
    """The exponential average at each loss, divided by the sum of its weights."""
    averages: list[float] = []
    total = weight = 0.0
    for loss in losses:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * loss
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        averages.append(total / weight)
    return averages


def steepest(curve: RangeTest) -> float:
    """The learning rate in the middle of the steps over which the smoothed loss falls most, before its minimum.

    The rate rises by the same factor at each step, so equally many steps are equally wide on a logarithmic scale.

    Raises:
        ConfigError: The loss never fell.
    """
    lowest = min(range(len(curve.smoothed)), key=curve.smoothed.__getitem__, default=0)
    falls = {
        step: curve.smoothed[step - _REACH] - curve.smoothed[step + _REACH]
        for step in range(_REACH, min(lowest + 1, len(curve.smoothed) - _REACH))
    }
    steepest_step = max(falls, key=falls.__getitem__, default=0)
    if falls.get(steepest_step, 0.0) <= 0:
        remedy = "Give a number; the curve is in lr_range.json"
        raise ConfigError(format_error("optimizer.lr", "no learning rate lowered the loss", remedy, value="auto"))
    return curve.lr[steepest_step]


def _no_score(run: Run, state: TrainState) -> Score:
    return Score("loss", 0.0, False, "raw")
