"""Cosine decay of the learning rate to a minimum that the last step reaches, after a warmup that never starts at 0."""

from trainer.constraints import Positive, Probability, validated
from trainer.scheduler.decay import cosine_wave, progress


@validated()
def cosine_warmup_with_min_lr(
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    num_cycles: Positive,
    min_factor: Probability,
    warmup_factor: Probability | None,
) -> float:
    """Return the factor on the base learning rate at `step`: linear to 1, then m + (1 - m) h.

    The height h is (1 + cos(2 pi c t)) / 2, c is `num_cycles`, m is `min_factor`. The factor is 1 at the last step of
    the warmup, `warmup_steps` - 1, and t is 1 at the last step of the run, `total_steps` - 1: one step earlier than in
    the other schedules, so the model trains with both the peak and the minimum. Loshchilov and Hutter 2017,
    https://arxiv.org/abs/1608.03983, eq. 5, without restarts.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the linear warmup.
        total_steps: Steps of the whole run.
        num_cycles: Periods of the cosine, greater than 0; 0.5 decays to the minimum once.
        min_factor: Minimum as a share of the base learning rate, in [0, 1] (transformers' `min_lr_rate`).
        warmup_factor: Factor at the first step of the warmup, in [0, 1] (transformers' `warmup_lr_rate`); None is
            1 / `warmup_steps`. A warmup of one step has only this factor.
    """
    if step < warmup_steps:
        if warmup_factor is None:
            return (step + 1) / warmup_steps
        return warmup_factor + (1.0 - warmup_factor) * step / max(1, warmup_steps - 1)
    height = cosine_wave(progress(step + 1, warmup_steps, total_steps), num_cycles)
    return height * (1.0 - min_factor) + min_factor
