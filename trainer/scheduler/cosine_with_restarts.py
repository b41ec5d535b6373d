"""A learning rate that falls along a cosine several times."""

import math

from trainer.errors import raise_if_any
from trainer.ranges import positive


def cosine_with_restarts(step: int, *, warmup_steps: int, total_steps: int, num_cycles: int) -> float:
    """The factor on the base learning rate at `step`: up from 0 to 1 along a line, then `num_cycles` falls to 0.

    Each fall is (1 + cos(pi t)) / 2 for t from 0 to 1; the next one starts at 1 again. It stays 0 after the run.
    Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, with periods of one length.

    Args:
        step: Optimizer updates done before this one.
        warmup_steps: Updates of the linear rise.
        total_steps: Updates of the whole run.
        num_cycles: Falls, at least 1.

    Raises:
        ConfigError: `num_cycles` is out of range.
    """
    raise_if_any(positive("num_cycles", num_cycles))
    if step < warmup_steps:
        return step / warmup_steps
    decay_steps = max(1, total_steps - warmup_steps)
    if step - warmup_steps >= decay_steps:
        return 0.0
    # The remainder of integers: a rounded t could miss the restart by one step and give 0 in place of 1.
    t = num_cycles * (step - warmup_steps) % decay_steps / decay_steps
    return 0.5 * (1.0 + math.cos(math.pi * t))
