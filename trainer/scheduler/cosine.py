"""A learning rate that falls along a cosine."""

import math

from trainer.errors import raise_if_any
from trainer.ranges import positive
from trainer.scheduler.progress import progress


def cosine(step: int, *, warmup_steps: int, total_steps: int, num_cycles: float) -> float:
    """The factor on the base learning rate at `step`: up from 0 to 1 along a line, then (1 + cos(2 pi c t)) / 2.

    t goes from 0 at the end of the warm-up to 1 at the end of the run, c is `num_cycles`. Without restarts, after
    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983.

    Args:
        step: Optimizer updates done before this one.
        warmup_steps: Updates of the linear rise.
        total_steps: Updates of the whole run.
        num_cycles: Waves of the cosine, above 0; 0.5 falls to 0 once.

    Raises:
        ConfigError: `num_cycles` is out of range.
    """
    raise_if_any(positive("num_cycles", num_cycles))
    if step < warmup_steps:
        return step / warmup_steps
    return 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * progress(step, warmup_steps, total_steps)))
