"""Cosine decay of the learning rate after a linear warmup."""

from trainer.constraints import Positive, validated
from trainer.scheduler.decay import cosine_wave, progress


@validated()
def cosine(step: int, *, warmup_steps: int, total_steps: int, num_cycles: Positive) -> float:
    """Return the factor on the base learning rate at `step`: linear from 0 to 1, then (1 + cos(2 pi c t)) / 2.

    t goes from 0 at the end of the warmup to 1 at the end of the run, c is `num_cycles`. Loshchilov and Hutter 2017,
    https://arxiv.org/abs/1608.03983, without restarts.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the linear warmup.
        total_steps: Steps of the whole run.
        num_cycles: Periods of the cosine, greater than 0; 0.5 decays to 0 once.
    """
    if step < warmup_steps:
        return step / warmup_steps
    return cosine_wave(progress(step, warmup_steps, total_steps), num_cycles)
