"""A learning rate that falls along a power of the time left."""

import math

from trainer.errors import raise_if_any
from trainer.ranges import positive, share
from trainer.scheduler.progress import progress


def polynomial(step: int, *, warmup_steps: int, total_steps: int, power: float, end_factor: float) -> float:
    """The factor on the base learning rate at `step`: up from 0 to 1 along a line, then e + (1 - e) (1 - t) ** power.

    t goes from 0 at the end of the warm-up to 1 at the end of the run, e is `end_factor`. After the run it stays e.

    Args:
        step: Optimizer updates done before this one.
        warmup_steps: Updates of the linear rise.
        total_steps: Updates of the whole run.
        power: Exponent, above 0; 1 is a line.
        end_factor: The factor at the end, in [0, 1]: a share of the base rate (where transformers' `lr_end` is a rate).

    Raises:
        ConfigError: `power` or `end_factor` is out of range.
    """
    raise_if_any(positive("power", power), share("end_factor", end_factor))
    if step < warmup_steps:
        return step / warmup_steps
    if step >= total_steps:
        return end_factor
    left = 1.0 - progress(step, warmup_steps, total_steps)
    return (1.0 - end_factor) * math.pow(left, power) + end_factor
