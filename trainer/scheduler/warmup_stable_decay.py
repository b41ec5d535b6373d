"""Warmup-stable-decay learning rate: a rise, a plateau and a decay at the end."""

import math
from typing import Literal

from trainer.constraints import Probability, validated
from trainer.scheduler.decay import progress


@validated()
def warmup_stable_decay(
    step: int,
    *,
    warmup_steps: int,
    decay_steps: int,
    total_steps: int,
    shape: Literal["linear", "cosine", "1-sqrt"],
    min_factor: Probability,
) -> float:
    """Return the factor on the base learning rate at `step`: linear from m to 1, then 1, then down to m.

    m is `min_factor`. If warmup and decay do not both fit into the run, the decay is shortened. Hu et al. 2024,
    https://arxiv.org/abs/2404.06395; the shape 1 - sqrt(t) is from Hägele et al. 2024, https://arxiv.org/abs/2405.18392.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the linear warmup.
        decay_steps: Steps of the decay, the last of the run.
        total_steps: Steps of the whole run.
        shape: Curve of the decay over t from 0 to 1: 1 - t, (1 + cos(pi t)) / 2, or 1 - sqrt(t).
        min_factor: Factor at the start and at the end, in [0, 1].
    """
    decay_start = max(warmup_steps, total_steps - decay_steps)
    if step < warmup_steps:
        height = step / warmup_steps
    elif step < decay_start:
        return 1.0
    elif step < total_steps:
        height = _decay(progress(step, decay_start, total_steps), shape)
    else:
        return min_factor
    return height * (1.0 - min_factor) + min_factor


def _decay(t: float, shape: Literal["linear", "cosine", "1-sqrt"]) -> float:
    if shape == "linear":
        return 1.0 - t
    if shape == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * t))
    return 1.0 - math.sqrt(t)
