"""A learning rate that rises high and falls to almost nothing in one run."""

import math
from typing import Literal

from trainer.errors import format_error, raise_if_any
from trainer.ranges import at_least


def onecycle(
    step: int,
    *,
    warmup_steps: int,
    total_steps: int,
    div_factor: float,
    final_div_factor: float,
    anneal: Literal["cos", "linear"],
    three_phase: bool,
) -> float:
    """The factor on the base learning rate at `step`: from 1 / d up to 1, then down to 1 / (d f).

    d is `div_factor`, f is `final_div_factor`; the base rate is the highest one (torch's `max_lr`). With `three_phase`
    it falls to 1 / d as fast as it rose, and from there to the end. The rise ends with its last update, step
    `warmup_steps` - 1, and the fall with the last of the run, as in torch's OneCycleLR; afterwards it stays there.
    Smith and Topin 2018, https://arxiv.org/abs/1708.07120 (three phases, linear). Only the learning rate goes through
    the cycle: the momentum, which the paper lowers while the rate rises, stays what the optimizer was given.

    Args:
        step: Optimizer updates done before this one.
        warmup_steps: Updates of the rise (torch's `pct_start` of the run); of the first fall too with `three_phase`.
        total_steps: Updates of the whole run.
        div_factor: The peak over the start, at least 1.
        final_div_factor: The start over the end, at least 1.
        anneal: How a phase goes over t from 0 to 1: by (1 - cos(pi t)) / 2, or by t.
        three_phase: Whether the fall has two phases.

    Raises:
        ConfigError: `div_factor` or `final_div_factor` is out of range, or `warmup_steps` leaves no three phases.
    """
    raise_if_any(
        at_least("div_factor", div_factor, 1),
        at_least("final_div_factor", final_div_factor, 1),
        _phases_fit(warmup_steps, total_steps) if three_phase else None,
    )
    start = 1.0 / div_factor
    end = start / final_div_factor
    phases = [(warmup_steps - 1, start, 1.0), (total_steps - 1, 1.0, end)]
    if three_phase:
        phases[1:] = [(2 * warmup_steps - 2, 1.0, start), (total_steps - 1, start, end)]
    # Without a rise the fall begins one update before the run, as torch's does.
    first = min(0, warmup_steps - 1)
    for last, before, after in phases:
        if step == last:
            return after
        if step < last:
            return _between(before, after, (step - first) / (last - first), anneal)
        first = last
    return end


def _phases_fit(warmup_steps: int, total_steps: int) -> str | None:
    # One update more than half is what rounding makes of half of an odd run.
    if 1 <= warmup_steps <= (total_steps + 1) // 2:
        return None
    problem = f"must be at least 1 step and at most half of the run ({total_steps} steps) with three_phase"
    return format_error("warmup", problem, value=warmup_steps)


def _between(before: float, after: float, t: float, anneal: Literal["cos", "linear"]) -> float:
    if anneal == "linear":
        return (after - before) * t + before
    return after + (before - after) / 2.0 * (math.cos(math.pi * t) + 1.0)
