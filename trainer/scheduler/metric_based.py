"""Shared parts of the schedules that follow the monitored metric."""

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import ClassVar, Literal

from trainer.constraints import Count, Fraction, NonNegative, NonNegativeInt, Probability, validated
from trainer.protocols import StateDict
from trainer.scheduler.constant_with_warmup import constant_with_warmup


@dataclass
class MetricState:
    """The part of a schedule's state that all metric-based schedules share; the names are keys of checkpoints.

    Attributes:
        scale: Factor on the base learning rate after the observations so far.
        best: Best score so far.
    """

    scale: float = 1.0
    best: float | None = None


class MetricBased:
    """Base class of the schedules that raise or lower the learning rate by observations of the monitored metric.

    The metric is observed at fixed steps of the run, every `every_steps`, independently of `train.eval_every`: the
    frequency of evaluations does not change the training. A schedule sets `state_type` and defines `observe`, and
    documents the arguments.
    """

    state_type: ClassVar[type[MetricState]]
    _state: MetricState

    @validated()
    def __init__(
        self,
        *,
        warmup_steps: NonNegativeInt,
        every_steps: Count,
        factor: Fraction,
        patience: NonNegativeInt,
        threshold: NonNegative,
        threshold_mode: Literal["rel", "abs"],
        min_factor: Probability,
        cooldown: NonNegativeInt,
    ) -> None:
        self.every_steps = every_steps
        self._warmup = partial(constant_with_warmup, warmup_steps=warmup_steps)
        self._is_improvement = partial(is_improvement, threshold=threshold, threshold_mode=threshold_mode)
        self._factor = factor
        self._patience = patience
        self._min_factor = min_factor
        self._cooldown = cooldown
        self._state = self.state_type()

    def __call__(self, step: int) -> float:
        """Return the factor on the base learning rate at `step`, after the observations so far."""
        return self._state.scale * self._warmup(step)

    def state_dict(self) -> StateDict:
        """Return the state after the observations so far, as JSON."""
        return asdict(self._state)

    def load_state_dict(self, state: StateDict) -> None:
        """Restore the state returned by `state_dict`."""
        self._state = self.state_type(**state)


def is_improvement(
    value: float,
    best: float | None,
    *,
    higher_is_better: bool,
    threshold: float,
    threshold_mode: Literal["rel", "abs"],
) -> bool:
    """Return whether `value` is better than `best` by more than the threshold, or finite and `best` is None.

    The threshold is `threshold` (`abs`), or `threshold` times the magnitude of `best` (`rel`). (torch multiplies by
    `best` itself, so a slightly worse score counts as better if scores are negative.) A value that is not finite is no
    improvement.
    """
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    if threshold_mode == "abs":
        return value > best + threshold if higher_is_better else value < best - threshold
    if higher_is_better:
        return value > best * (1.0 + math.copysign(threshold, best))
    return value < best * (1.0 - math.copysign(threshold, best))
