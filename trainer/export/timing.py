"""Latency of a prediction, eager and exported, measured in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.export.cases import Forward, Sizes

EAGER = "pytorch"
"""Name of eager PyTorch among the formats."""

SECONDS_PER_MODEL = 1.2
"""Time that an export spends on each model. Tests set it to 0, as most of them do not read latencies."""

_WARM_UP_CALLS = 2  # TorchScript compiles in its first two runs of a shape
_MIN_TURNS = 2
_MAX_TURNS = 30
# Idle threads of a runtime spin for a while, which slows down whatever runs next, and then sleep, which slows down the
# runtime's own next calls. So a turn begins after a pause, and its first calls are not timed.
_PAUSE, _WARM_UP, _TIMED = 0.02, 0.02, 0.05  # seconds of a turn


@dataclass(frozen=True)
class Timing:
    """Median latency of one call at one shape.

    Attributes:
        sizes: Size of each axis.
        milliseconds: Latency of `pytorch` and of each format.
    """

    sizes: Sizes
    milliseconds: dict[str, float]

    def speedup(self, name: str) -> float:
        """Return the speed-up of a format over eager PyTorch."""
        return self.milliseconds[EAGER] / self.milliseconds[name]


def measure(
    forwards: Mapping[str, Forward], inputs: Sequence[tuple[Sizes, dict[str, Tensor]]], *, seconds: float
) -> list[Timing]:
    """Time every model at every shape, the smallest shape first, in about `seconds` in total.

    The models take turns, so that a machine that is slow for a while slows down all of them; within its turn, each runs
    as if it were the only one. A shape is skipped if, going by the shape before it, even its fewest calls would take
    longer than the remaining time. The first shape is never skipped.
    """
    end = perf_counter() + seconds
    ordered = sorted(inputs, key=lambda each: _count_elements(each[1]))
    timings: list[Timing] = []
    expected: list[float] = []  # seconds per call and input element, for each model
    for place, (sizes, values) in enumerate(ordered):
        remaining = end - perf_counter()
        if timings and sum(_min_seconds(call * _count_elements(values)) for call in expected) > remaining:
            break
        timings.append(Timing(sizes, _median_latencies(forwards, values, remaining / (len(ordered) - place))))
        expected = [milliseconds / 1000 / _count_elements(values) for milliseconds in timings[-1].milliseconds.values()]
    return timings


def _min_seconds(call: float) -> float:
    """Return the time of a model's fewest turns if a call takes `call` seconds."""
    return _WARM_UP_CALLS * call + _MIN_TURNS * (_PAUSE + max(_WARM_UP, call) + max(_TIMED, call))


def _count_elements(inputs: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in inputs.values())


def _median_latencies(forwards: Mapping[str, Forward], inputs: dict[str, Tensor], seconds: float) -> dict[str, float]:
    """Return the median latency of each model in milliseconds."""
    start = perf_counter()
    for _ in range(_WARM_UP_CALLS):
        for forward in forwards.values():
            forward(inputs)
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for turn in range(_MAX_TURNS):
        if turn >= _MIN_TURNS and (perf_counter() - start) * (turn + 1) / turn > seconds:
            break  # one more turn would take too long
        for name, forward in forwards.items():
            sleep(_PAUSE)
            _time_calls(forward, inputs, _WARM_UP)
            times[name] += _time_calls(forward, inputs, _TIMED)
    return {name: 1000 * median(each) for name, each in times.items()}


def _time_calls(forward: Forward, inputs: dict[str, Tensor], seconds: float) -> list[float]:
    """Call a model again and again for `seconds`, at least once; return the seconds of each call."""
    times: list[float] = []
    start = last = perf_counter()
    while not times or last - start < seconds:
        forward(inputs)
        now = perf_counter()
        times.append(now - last)
        last = now
    return times
