"""A learning rate that falls when the monitored metric has stopped getting better."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

from trainer.errors import raise_if_any
from trainer.ranges import fraction, share
from trainer.scheduler.constant_with_warmup import constant_with_warmup
from trainer.scheduler.improvement import improves, out_of_range


@dataclass
class _Looks:
    """What the looks have left."""

    scale: float = 1.0
    best: float | None = None
    bad_looks: int = 0
    cooldown_left: int = 0


class ReduceOnPlateau:
    """Up from 0 to 1 along a line; then each plateau multiplies the factor on the base learning rate by `factor`.

    A plateau is more than `patience` looks in a row that are no better than the best so far. It is torch's
    ReduceLROnPlateau with rates as shares of the base rate (and without its `eps`); "divide the rate by 10 when the
    error plateaus" is the schedule of He et al. 2016, https://arxiv.org/abs/1512.03385.

    The looks are at fixed steps of the run, every `every_steps`, and do not depend on `train.eval_every`: how often one
    evaluates does not change what is learnt.

    Args:
        warmup_steps: Updates of the linear rise; looks count during it too.
        every_steps: Updates from one look to the next, at least 1.
        factor: What a plateau multiplies the rate by, above 0 and below 1.
        patience: Looks in a row without improvement that change nothing, at least 0.
        threshold: How much better a look must be to count, at least 0.
        threshold_mode: Whether `threshold` is a share of the best score or in the metric's own unit.
        min_factor: The factor never falls below it, in [0, 1].
        cooldown: Looks after a reduction that count as no plateau, at least 0.

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
        cooldown: int,
    ) -> None:
        raise_if_any(
            *out_of_range(every_steps, patience, cooldown, threshold),
            fraction("factor", factor),
            share("min_factor", min_factor),
        )
        self.every_steps = every_steps
        self._warmup = partial(constant_with_warmup, warmup_steps=warmup_steps)
        self._improves = partial(improves, threshold=threshold, threshold_mode=threshold_mode)
        self._factor = factor
        self._patience = patience
        self._min_factor = min_factor
        self._cooldown = cooldown
        self._looks = _Looks()

    def __call__(self, step: int) -> float:
        """The factor on the base learning rate at `step`, after the looks so far."""
        return self._looks.scale * self._warmup(step)

    def observe(self, value: float, higher_is_better: bool) -> None:
        """Takes the score of a look; one that is not finite is no improvement."""
        looks = self._looks
        if self._improves(value, looks.best, higher_is_better=higher_is_better):
            looks.best = float(value)
            looks.bad_looks = 0
        else:
            looks.bad_looks += 1
        if looks.cooldown_left:
            looks.cooldown_left -= 1
            looks.bad_looks = 0
        if looks.bad_looks > self._patience:
            looks.scale = max(looks.scale * self._factor, self._min_factor)
            looks.cooldown_left = self._cooldown
            looks.bad_looks = 0

    def state_dict(self) -> dict[str, Any]:
        """What the looks have left: JSON."""
        return asdict(self._looks)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._looks = _Looks(**state)
