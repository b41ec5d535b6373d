"""A learning rate that falls when the monitored metric has stopped getting better."""

from typing import Any, Literal

from trainer.scheduler.checks import refuse, share, shrinking
from trainer.scheduler.constant_with_warmup import constant_with_warmup
from trainer.scheduler.improvement import improves, out_of_range


class ReduceOnPlateau:
    """Up from 0 to 1 along a line; then each plateau multiplies the factor on the base learning rate by `factor`.

    A plateau is more than `patience` looks in a row that are no better than the best so far. It is torch's
    ReduceLROnPlateau with rates as shares of the base rate (and without its `eps`); "divide the rate by 10 when the
    error plateaus" is the schedule of He et al. 2016, https://arxiv.org/abs/1512.03385.

    The looks are at fixed steps of the run, every `every_steps`, and do not depend on `train.eval_every`: how often one
    evaluates does not change what is learnt.

    Attributes:
        every_steps: Updates from one look to the next.
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
        """Starts at the base rate, with nothing seen.

        Args:
            warmup_steps: Updates of the linear rise; looks count during it too.
            every_steps: Updates from one look to the next, at least 1.
            factor: What a plateau multiplies the rate by, above 0 and below 1.
            patience: Looks in a row without improvement that change nothing, at least 0.
            threshold: How much better a look must be to count, at least 0.
            threshold_mode: Whether `threshold` is a share of the best score or in the metric's own unit.
            min_factor: The factor never falls below it, in [0, 1].
            cooldown: Looks after a reduction that count as no plateau, at least 0.

        Raises:
            ConfigError: Values are out of range.
        """
        refuse(
            *out_of_range(every_steps, patience, cooldown, threshold),
            shrinking("factor", factor),
            share("min_factor", min_factor),
        )
        self.every_steps = every_steps
        self._warmup_steps = warmup_steps
        self._factor = factor
        self._patience = patience
        self._threshold = threshold
        self._threshold_mode = threshold_mode
        self._min_factor = min_factor
        self._cooldown = cooldown
        self._scale = 1.0
        self._best: float | None = None
        self._bad_looks = 0
        self._cooldown_left = 0

    def __call__(self, step: int) -> float:
        """The factor on the base learning rate at `step`, after the looks so far."""
        return self._scale * constant_with_warmup(step, warmup_steps=self._warmup_steps)

    def observe(self, value: float, higher_is_better: bool) -> None:
        """Takes the score of a look; one that is not finite is no improvement."""
        if improves(
            value,
            self._best,
            higher_is_better=higher_is_better,
            threshold=self._threshold,
            threshold_mode=self._threshold_mode,
        ):
            self._best = float(value)
            self._bad_looks = 0
        else:
            self._bad_looks += 1
        if self._cooldown_left:
            self._cooldown_left -= 1
            self._bad_looks = 0
        if self._bad_looks > self._patience:
            self._scale = max(self._scale * self._factor, self._min_factor)
            self._cooldown_left = self._cooldown
            self._bad_looks = 0

    def state_dict(self) -> dict[str, Any]:
        """What the looks have left: JSON."""
        return {
            "scale": self._scale,
            "best": self._best,
            "bad_looks": self._bad_looks,
            "cooldown_left": self._cooldown_left,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from what `state_dict` gave."""
        self._scale = state["scale"]
        self._best = state["best"]
        self._bad_looks = state["bad_looks"]
        self._cooldown_left = state["cooldown_left"]
