"""One-cycle learning rate: a rise to the peak and a decay to almost 0 in one run."""

import math
from typing import Literal

from trainer.constraints import AtLeastOne, Rule, validated


@validated(
    # Half of an odd run may be rounded up, which is one step more than half of it.
    Rule(
        "not three_phase or 1 <= warmup_steps <= (total_steps + 1) // 2",
        key="warmup",
        problem="must be at least 1 step and at most half of the run with three_phase,"
        " got {warmup_steps} of {total_steps} steps",
    )
)
def onecycle(
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    div_factor: AtLeastOne,
    final_div_factor: AtLeastOne,
    anneal: Literal["cos", "linear"],
    three_phase: bool,
) -> float:
    """Return the factor on the base learning rate at `step`: from 1 / d up to 1, then down to 1 / (d f).

    d is `div_factor`, f is `final_div_factor`; the base learning rate is the peak (torch's `max_lr`). With
    `three_phase` it decays to 1 / d as fast as it rose, then on to the end. As in torch's OneCycleLR, the rise ends at
    step `warmup_steps` - 1 and the decay at the last step of the run; afterwards the factor is constant. Smith and
    Topin 2018, https://arxiv.org/abs/1708.07120 (three phases, linear). The cycle applies only to the learning rate:
    the paper lowers the momentum while the learning rate rises, here the momentum is constant.

    Args:
        step: Optimizer steps done before this one.
        warmup_steps: Steps of the rise (torch's `pct_start` of the run), and of the first decay with `three_phase`.
        total_steps: Steps of the whole run.
        div_factor: Ratio of the peak to the start, at least 1.
        final_div_factor: Ratio of the start to the end, at least 1.
        anneal: Curve of a phase over t from 0 to 1: (1 - cos(pi t)) / 2 or t.
        three_phase: Split the decay into two phases.

    Raises:
        ConfigError: `warmup_steps` does not fit three phases.
    """
    start = 1.0 / div_factor
    end = start / final_div_factor
    phases = [(warmup_steps - 1, start, 1.0), (total_steps - 1, 1.0, end)]
    if three_phase:
        phases[1:] = [(2 * warmup_steps - 2, 1.0, start), (total_steps - 1, start, end)]
    # Without a rise the decay begins one step before the run, as in torch.
    first = min(0, warmup_steps - 1)
    for last, before, after in phases:
        if step == last:
            return after
        if step < last:
            return _interpolate(before, after, (step - first) / (last - first), anneal)
        first = last
    return end


def _interpolate(before: float, after: float, t: float, anneal: Literal["cos", "linear"]) -> float:
    if anneal == "linear":
        return (after - before) * t + before
    return after + (before - after) / 2.0 * (math.cos(math.pi * t) + 1.0)
