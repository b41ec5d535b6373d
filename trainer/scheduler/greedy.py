"""Greedy learning rate: increases while the monitored metric improves and decreases while it does not."""

import math
from dataclasses import dataclass, field
from typing import Literal

from trainer.constraints import AtLeastOne, Count, Fraction, NonNegative, NonNegativeInt, Probability, validated
from trainer.scheduler.metric_based import MetricBased, MetricState


@dataclass
class _State(MetricState):
    """State of `Greedy`; the names are keys of checkpoints.

    Attributes:
        good_looks: Consecutive observations with an improvement.
        bad_looks: Consecutive observations without an improvement.
        wait: Observations that are still skipped.
        at_min: Reductions that ended at `min_factor` since the learning rate last increased.
        scores: Finite scores in the window of the mean.
    """

    good_looks: int = 0
    bad_looks: int = 0
    wait: int = 0
    at_min: int = 0
    scores: list[float] = field(default_factory=list)


class Greedy(MetricBased):
    """Linear warmup from 0 to 1; then observations multiply or divide the factor on the base learning rate by F.

    F is `factor`. More than `patience` consecutive observations that beat the best score increase the learning rate,
    equally many that do not decrease it; the mean of the last `window` observations is compared. Subramanian,
    Krishnamoorthy and Murthy 2025, https://arxiv.org/abs/2512.14527: transformers' GreedyLR, with learning rates
    relative to the base learning rate (and without its `eps`).

    Args:
        warmup_steps: Steps of the linear warmup; the metric is observed during the warmup too.
        every_steps: Steps between observations, at least 1.
        factor: F, in (0, 1).
        patience: Consecutive observations of one kind that change nothing, at least 0.
        threshold: Margin by which an observation must beat the best score, at least 0.
        threshold_mode: `rel`: `threshold` is a share of the best score; `abs`: it is in the metric's unit.
        min_factor: Lower bound of the factor, in [0, 1].
        max_factor: Upper bound of the factor, at least 1.
        cooldown: Observations skipped after a decrease, at least 0.
        rise_cooldown: Observations skipped after an increase, at least 0 (GreedyLR's `warmup`).
        window: Observations in the mean, at least 1; 1 uses each observation as it is.
        reset_after: Number of reductions ending at `min_factor`, since the last increase, after which the schedule
            restarts from its initial state, at least 1; None never restarts (GreedyLR's `reset_start`).

    Attributes:
        every_steps: Steps between observations.
    """

    state_type = _State
    _state: _State

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
        max_factor: AtLeastOne,
        cooldown: NonNegativeInt,
        rise_cooldown: NonNegativeInt,
        window: Count,
        reset_after: Count | None,
    ) -> None:
        super().__init__(
            warmup_steps=warmup_steps,
            every_steps=every_steps,
            factor=factor,
            patience=patience,
            threshold=threshold,
            threshold_mode=threshold_mode,
            min_factor=min_factor,
            cooldown=cooldown,
        )
        self._max_factor = max_factor
        self._rise_cooldown = rise_cooldown
        self._window = window
        self._reset_after = reset_after

    def observe(self, value: float, higher_is_better: bool) -> None:
        """Observe a score; a score that is not finite is no improvement and is not part of the mean."""
        state = self._state
        if math.isfinite(value):
            state.scores = [*state.scores, float(value)][-self._window :]
            value = sum(state.scores) / len(state.scores)
        if state.wait:
            state.wait -= 1
            return
        if self._is_improvement(value, state.best, higher_is_better=higher_is_better):
            state.best = value
            state.good_looks, state.bad_looks = state.good_looks + 1, 0
        else:
            state.good_looks, state.bad_looks = 0, state.bad_looks + 1
        if state.good_looks > self._patience:
            self._increase(state)
        elif state.bad_looks > self._patience:
            self._decrease(state)

    def _increase(self, state: _State) -> None:
        state.scale = min(state.scale / self._factor, self._max_factor)
        state.good_looks = 0
        state.wait = self._rise_cooldown
        state.at_min = 0

    def _decrease(self, state: _State) -> None:
        state.scale = max(state.scale * self._factor, self._min_factor)
        state.bad_looks = 0
        if state.scale <= self._min_factor:
            state.at_min += 1
            if state.at_min == self._reset_after:
                state.scale, state.best, state.at_min, state.scores = 1.0, None, 0, []
        state.wait = self._cooldown
