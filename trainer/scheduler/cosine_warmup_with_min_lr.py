"""A learning rate that never starts at 0 and falls along a cosine to a floor that the last update reaches."""

import math

from trainer.errors import raise_if_any
from trainer.ranges import positive, share
from trainer.scheduler.progress import progress


def cosine_warmup_with_min_lr(
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    num_cycles: float,
    min_factor: float,
    warmup_factor: float | None,
) -> float:
    """The factor on the base learning rate at `step`: up to 1 along a line, then m + (1 - m) h.

    The height h is (1 + cos(2 pi c t)) / 2, c is `num_cycles`, m is `min_factor`. The warm-up ends at 1 with its last
    update, step `warmup_steps` - 1, and t is 1 at the last update of the run, step `total_steps` - 1: one update
    earlier than in the other schedules, so that the peak and the floor are both trained with. Loshchilov and Hutter
    2017, https://arxiv.org/abs/1608.03983, eq. 5, without restarts.

    Args:
        step: Optimizer updates done before this one.
        warmup_steps: Updates of the linear rise.
        total_steps: Updates of the whole run.
        num_cycles: Waves of the cosine, above 0; 0.5 falls to the floor once.
        min_factor: The floor, in [0, 1]: a share of the base rate (transformers' `min_lr_rate`).
        warmup_factor: The factor at the start of the warm-up, in [0, 1] (transformers' `warmup_lr_rate`); None for
            1 / `warmup_steps`. A warm-up of one update is this factor alone.

    Raises:
        ConfigError: `num_cycles`, `min_factor` or `warmup_factor` is out of range.
    """
    raise_if_any(
        positive("num_cycles", num_cycles),
        share("min_factor", min_factor),
        None if warmup_factor is None else share("warmup_factor", warmup_factor),
    )
    if step < warmup_steps:
        if warmup_factor is None:
            return (step + 1) / warmup_steps
        return warmup_factor + (1.0 - warmup_factor) * step / max(1, warmup_steps - 1)
    t = progress(step + 1, warmup_steps, total_steps)
    height = 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * t))
    return height * (1.0 - min_factor) + min_factor
