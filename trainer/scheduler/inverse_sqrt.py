"""A learning rate that falls with the root of the time."""

import math

from trainer.errors import raise_if_any
from trainer.ranges import at_least

_TIMESCALE_WITHOUT_WARMUP = 10_000


def inverse_sqrt(step: int, *, warmup_steps: int, timescale: int | None) -> float:
    """The factor on the base learning rate at `step`: up from 0 to 1 along a line, then 1 / sqrt(1 + s / timescale).

    s counts the updates since the end of the warm-up; the fall does not depend on the length of the run. With the
    warm-up as its timescale it is the schedule of Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, eq. 3;
    with one of its own that of Zhai et al. 2022, https://arxiv.org/abs/2106.04560.

    Args:
        step: Optimizer updates done before this one.
        warmup_steps: Updates of the linear rise.
        timescale: Updates after which the rate has fallen to 1 / sqrt(2), at least 1; None for `warmup_steps`, or
            10000 without a warm-up.

    Raises:
        ConfigError: `timescale` is out of range.
    """
    if timescale is None:
        timescale = warmup_steps or _TIMESCALE_WITHOUT_WARMUP
    raise_if_any(at_least("timescale", timescale, 1))
    if step < warmup_steps:
        return step / warmup_steps
    return 1.0 / math.sqrt((step - warmup_steps + timescale) / timescale)
