"""Cosine decay of the learning rate with warm restarts, after a linear warmup."""

import math

from trainer.constraints import Count, validated


@validated()
def cosine_with_restarts(step: int, *, warmup_steps: int, total_steps: int, num_cycles: Count) -> float:
    """Return the factor on the base learning rate at `step`: linear from 0 to 1, then `num_cycles` decays to 0, then 0.

    Each decay is (1 + cos(pi t)) / 2 for t from 0 to 1; the next one starts at 1 again. Loshchilov and Hutter 2017,
    https://arxiv.org/abs/1608.03983, with periods of equal length.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the linear warmup.
        total_steps: Steps of the whole run.
        num_cycles: Number of decays, at least 1.
    """
    if step < warmup_steps:
        return step / warmup_steps
    decay_steps = max(1, total_steps - warmup_steps)
    if step - warmup_steps >= decay_steps:
        return 0.0
    # An integer remainder: a rounded t could miss the restart by one step and give 0 instead of 1.
    t = num_cycles * (step - warmup_steps) % decay_steps / decay_steps
    return 0.5 * (1.0 + math.cos(math.pi * t))
