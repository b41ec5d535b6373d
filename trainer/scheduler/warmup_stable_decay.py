"""A learning rate that rises, stays and falls at the end."""

import math
from typing import Literal

from trainer.errors import raise_if_any
from trainer.ranges import share
from trainer.scheduler.progress import progress


def warmup_stable_decay(
    step: int,
    *,
    warmup_steps: int,
    decay_steps: int,
    total_steps: int,
    shape: Literal["linear", "cosine", "1-sqrt"],
    min_factor: float,
) -> float:
    """The factor on the base learning rate at `step`: up from m to 1 along a line, 1, then down to m.

    m is `min_factor`. Where warm-up and decay do not both fit into the run, the decay is what the warm-up leaves.
    Hu et al. 2024, https://arxiv.org/abs/2404.06395; the shape 1 - sqrt(t) from Hägele et al. 2024,
    https://arxiv.org/abs/2405.18392.

    Args:
        step: Optimizer updates done before this one.
        warmup_steps: Updates of the linear rise.
        decay_steps: Updates of the fall, the last of the run.
        total_steps: Updates of the whole run.
        shape: The fall over t from 0 to 1: 1 - t, (1 + cos(pi t)) / 2, or 1 - sqrt(t).
        min_factor: The factor at the start and at the end, in [0, 1].

    Raises:
        ConfigError: `min_factor` is out of range.
    """
    raise_if_any(share("min_factor", min_factor))
    decay_start = max(warmup_steps, total_steps - decay_steps)
    if step < warmup_steps:
        height = step / warmup_steps
    elif step < decay_start:
        return 1.0
    elif step < total_steps:
        height = _fall(progress(step, decay_start, total_steps), shape)
    else:
        return min_factor
    return height * (1.0 - min_factor) + min_factor


def _fall(t: float, shape: Literal["linear", "cosine", "1-sqrt"]) -> float:
    if shape == "linear":
        return 1.0 - t
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * t))
    return 1.0 - math.sqrt(t)
