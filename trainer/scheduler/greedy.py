"""A learning rate that rises while the monitored metric gets better and falls while it does not."""

import math
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal

from trainer.errors import raise_if_any
from trainer.ranges import at_least, fraction, share
from trainer.scheduler.constant_with_warmup import constant_with_warmup
from trainer.scheduler.improvement import improves, out_of_range


@dataclass
class _Looks:
    """What the looks have left."""

    scale: float = 1.0
    best: float | None = None
    good_looks: int = 0
    bad_looks: int = 0
    wait: int = 0
    at_min: int = 0
    scores: list[float] = field(default_factory=list)


class Greedy:
    """Up from 0 to 1 along a line; then looks divide the factor on the base learning rate by F or multiply it with F.

    F is `factor`. More than `patience` looks in a row that are better than the best so far raise the rate, as many that
    are not lower it; what is compared is the mean of the last `window` looks. Subramanian, Krishnamoorthy and Murthy
    2025, https://arxiv.org/abs/2512.14527: transformers' GreedyLR, with rates as shares of the base rate (and without
    its `eps`).

    The looks are at fixed steps of the run, every `every_steps`, and do not depend on `train.eval_every`: how often one
    evaluates does not change what is learnt.

    Args:
        warmup_steps: Updates of the linear rise; looks count during it too.
        every_steps: Updates from one look to the next, at least 1.
        factor: F, above 0 and below 1.
        patience: Looks in a row of one kind that change nothing, at least 0.
        threshold: How much better a look must be to count, at least 0.
        threshold_mode: Whether `threshold` is a share of the best score or in the metric's own unit.
        min_factor: No look lowers the factor below it, in [0, 1].
        max_factor: No look raises the factor above it, at least 1.
        cooldown: Looks after the rate was lowered that are passed over, at least 0.
        rise_cooldown: Looks after it was raised that are passed over, at least 0 (GreedyLR's `warmup`).
        window: Looks in the mean, at least 1; 1 is the look itself.
        reset_after: Reductions that find the factor at `min_factor`, or bring it there, since it last rose, at
            least 1: as many bring everything back to the start. None for never (GreedyLR's `reset_start`).

    Attributes:
        every_steps: Updates from one look to the next.

    Raises:
        ConfigError: Values are out of range.
    """

    def __init__(
        self,
        *,
        warmup_steps: int,
        every_steps: int,
        factor: float,
        patience: int,
        threshold: float,
        threshold_mode: Literal["rel", "abs"],
        min_factor: float,
        max_factor: float,
        cooldown: int,
        rise_cooldown: int,
        window: int,
        reset_after: int | None,
    ) -> None:
        raise_if_any(
            *out_of_range(every_steps, patience, cooldown, threshold),
            fraction("factor", factor),
            share("min_factor", min_factor),
            at_least("max_factor", max_factor, 1),
            at_least("rise_cooldown", rise_cooldown, 0),
            at_least("window", window, 1),
            None if reset_after is None else at_least("reset_after", reset_after, 1),
        )
        self.every_steps = every_steps
        self._warmup = partial(constant_with_warmup, warmup_steps=warmup_steps)
        self._improves = partial(improves, threshold=threshold, threshold_mode=threshold_mode)
        self._factor = factor
        self._patience = patience
        self._min_factor = min_factor
        self._max_factor = max_factor
        self._cooldown = cooldown
        self._rise_cooldown = rise_cooldown
        self._window = window
        self._reset_after = reset_after
        self._looks = _Looks()

    def __call__(self, step: int) -> float:
        """The factor on the base learning rate at `step`, after the looks so far."""
        return self._looks.scale * self._warmup(step)

    def observe(self, value: float, higher_is_better: bool) -> None:
        """Takes the score of a look; one that is not finite is no improvement and stays out of the mean."""
        looks = self._looks
        if math.isfinite(value):
            looks.scores = [*looks.scores, float(value)][-self._window :]
            value = sum(looks.scores) / len(looks.scores)
        if looks.wait:
            looks.wait -= 1
            return
        if self._improves(value, looks.best, higher_is_better=higher_is_better):
            looks.best = value
            looks.good_looks, looks.bad_looks = looks.good_looks + 1, 0
        else:
            looks.good_looks, looks.bad_looks = 0, looks.bad_looks + 1
        if looks.good_looks > self._patience:
            self._rise(looks)
        elif looks.bad_looks > self._patience:
            self._fall(looks)

    def state_dict(self) -> dict[str, Any]:
        """What the looks have left: JSON."""
        return asdict(self._looks)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._looks = _Looks(**state)

    def _rise(self, looks: _Looks) -> None:
        looks.scale = min(looks.scale / self._factor, self._max_factor)
        looks.good_looks = 0
        looks.wait = self._rise_cooldown
        looks.at_min = 0

    def _fall(self, looks: _Looks) -> None:
        looks.scale = max(looks.scale * self._factor, self._min_factor)
        looks.bad_looks = 0
        if looks.scale <= self._min_factor:
            looks.at_min += 1
            if looks.at_min == self._reset_after:
                looks.scale, looks.best, looks.at_min, looks.scores = 1.0, None, 0, []
        looks.wait = self._cooldown
