"""Cosine decay of the learning rate to a minimum after a linear warmup."""

from trainer.constraints import Positive, Probability, validated
from trainer.scheduler.decay import cosine_wave, progress


@validated()
def cosine_with_min_lr(
    step: int, *, warmup_steps: int, total_steps: int, num_cycles: Positive, min_factor: Probability
) -> float:
    """Return the factor on the base learning rate at `step`: linear from 0 to 1, then m + (1 - m) h.

    The height h is (1 + cos(2 pi c t)) / 2, t goes from 0 at the end of the warmup to 1 at the end of the run, c is
    `num_cycles`, m is `min_factor`. Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5, without
    restarts.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the linear warmup.
        total_steps: Steps of the whole run.
        num_cycles: Periods of the cosine, greater than 0; 0.5 decays to the minimum once.
        min_factor: Minimum as a share of the base learning rate, in [0, 1] (transformers' `min_lr_rate`).
    """
    if step < warmup_steps:
        return step / warmup_steps
    height = cosine_wave(progress(step, warmup_steps, total_steps), num_cycles)
    return height * (1.0 - min_factor) + min_factor
