"""Whether a score is better than the best one so far."""

import math
from typing import Literal

from trainer.ranges import at_least


def improves(
    value: float,
    best: float | None,
    *,
    higher_is_better: bool,
    threshold: float,
    threshold_mode: Literal["rel", "abs"],
) -> bool:
    """Whether `value` is better than `best` by more than the threshold; any finite value is better than None.

    The threshold is `threshold`, or `threshold` times the size of `best`. (torch multiplies with `best` itself, so that
    below 0 what is a little worse counts as better.) A value that is not finite is no improvement.
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


def out_of_range(
    every_steps: int, patience: int, cooldown: int, threshold: float
) -> tuple[str | None, str | None, str | None, str | None]:
    """What is wrong with the parameters that all schedules have that look at a metric: messages for `refuse`."""
    return (
        at_least("every", every_steps, 1),
        at_least("patience", patience, 0),
        at_least("cooldown", cooldown, 0),
        at_least("threshold", threshold, 0),
    )
