"""Shared curves of the schedules that decay after a linear warmup."""

import math


def progress(step: int, start: int, end: int) -> float:
    """Return the fraction of the phase from step `start` to `end` that is done at `step`; 0 in an empty phase."""
    return (step - start) / max(1, end - start)


def cosine_wave(t: float, num_cycles: float) -> float:
    """Return (1 + cos(2 pi c t)) / 2: from 1 at t = 0 through c = `num_cycles` periods until t = 1."""
    return 0.5 * (1.0 + math.cos(math.pi * num_cycles * 2.0 * t))
