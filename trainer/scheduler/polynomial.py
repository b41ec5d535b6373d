"""Polynomial decay of the learning rate after a linear warmup."""

import math

from trainer.constraints import Positive, Probability, validated
from trainer.scheduler.decay import progress


@validated()
def polynomial(step: int, *, warmup_steps: int, total_steps: int, power: Positive, end_factor: Probability) -> float:
    """Return the factor on the base learning rate at `step`: linear from 0 to 1, then e + (1 - e) (1 - t) ** power.

    t goes from 0 at the end of the warmup to 1 at the end of the run, e is `end_factor`. After the run it is e.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the linear warmup.
        total_steps: Steps of the whole run.
        power: Exponent, greater than 0; 1 is linear.
        end_factor: Factor at the end, a share of the base learning rate in [0, 1] (transformers' `lr_end` is absolute).
    """
    if step < warmup_steps:
        return step / warmup_steps
    if step >= total_steps:
        return end_factor
    remaining = 1.0 - progress(step, warmup_steps, total_steps)
    return (1.0 - end_factor) * math.pow(remaining, power) + end_factor
