"""Inverse square root decay of the learning rate after a linear warmup."""

import math

from trainer.constraints import Count, validated

_TIMESCALE_WITHOUT_WARMUP = 10_000


@validated()
def inverse_sqrt(step: int, *, warmup_steps: int, timescale: Count | None) -> float:
    """Return the factor on the base learning rate at `step`: linear from 0 to 1, then 1 / sqrt(1 + s / timescale).

    s is the number of steps since the end of the warmup; the decay does not depend on the length of the run. With the
    warmup as the timescale it is the schedule of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 3; with a
    separate timescale it is the schedule of Zhai et al. 2022, https://arxiv.org/abs/2106.04560.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the linear warmup.
        timescale: Steps after which the learning rate has decayed to 1 / sqrt(2), at least 1; None is `warmup_steps`,
            or 10000 without a warmup.
    """
    if timescale is None:
        timescale = warmup_steps or _TIMESCALE_WITHOUT_WARMUP
    if step < warmup_steps:
        return step / warmup_steps
    return 1.0 / math.sqrt((step - warmup_steps + timescale) / timescale)
