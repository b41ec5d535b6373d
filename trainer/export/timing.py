"""Latency of a prediction, eager and exported, measured in turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep, thread_time
from typing import TYPE_CHECKING, NamedTuple

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
_MIN_RUNNING = 0.67
"""Share of its time that a thread runs on a machine that does nothing else: it computes, or it spins for the others."""
_MAX_SPREAD = 2.0
"""Ratio of the latencies of a model in different turns, which are alike on a machine that does nothing else."""


class _Turn(NamedTuple):
    """The seconds of each call of a turn, and the share of them for which the thread was running."""

    calls: list[float]
    running: float


@dataclass(frozen=True)
class Timing:
    """Median latency of one call at one shape.

    Attributes:
        sizes: Size of each axis.
        milliseconds: Latency of `pytorch` and of each format.
        disturbed: Something else has used the processor at that time, so the latencies say nothing about the models.
    """

    sizes: Sizes
    milliseconds: dict[str, float]
    disturbed: bool = False

    def speedup(self, name: str) -> float:
        """Return the speed-up of a format over eager PyTorch."""
        return self.milliseconds[EAGER] / self.milliseconds[name]


def describe_disturbed(disturbed: int, total: int) -> str:
    """Return a sentence about shapes whose latencies are not shown, given their number and the number of all shapes."""
    return (
        f"no latency of {disturbed} of {total} shapes: something else used the processor while they were measured. "
        "Run trainer export again when the machine is idle."
    )


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
        timings.append(_measure_shape(sizes, forwards, values, remaining / (len(ordered) - place)))
        expected = [milliseconds / 1000 / _count_elements(values) for milliseconds in timings[-1].milliseconds.values()]
    return timings


def _min_seconds(call: float) -> float:
    """Return the time of a model's fewest turns if a call takes `call` seconds."""
    return _WARM_UP_CALLS * call + _MIN_TURNS * (_PAUSE + max(_WARM_UP, call) + max(_TIMED, call))


def _count_elements(inputs: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in inputs.values())


def _measure_shape(sizes: Sizes, forwards: Mapping[str, Forward], inputs: dict[str, Tensor], seconds: float) -> Timing:
    """Time every model at one shape in about `seconds`."""
    start = perf_counter()
    for _ in range(_WARM_UP_CALLS):
        for forward in forwards.values():
            forward(inputs)
    turns: dict[str, list[_Turn]] = {name: [] for name in forwards}
    for number in range(_MAX_TURNS):
        if number >= _MIN_TURNS and (perf_counter() - start) * (number + 1) / number > seconds:
            break  # one more turn would take too long
        for name, forward in forwards.items():
            sleep(_PAUSE)
            _time_calls(forward, inputs, _WARM_UP)
            turns[name].append(_time_calls(forward, inputs, _TIMED))
    latencies = {name: 1000 * median(call for turn in own for call in turn.calls) for name, own in turns.items()}
    return Timing(sizes, latencies, any(map(_is_disturbed, turns.values())))


def _is_disturbed(turns: Sequence[_Turn]) -> bool:
    """Return whether something else used the processor in the turns of a model, so that it had to wait."""
    latencies = sorted(median(turn.calls) for turn in turns)
    quarter = len(latencies) // 4  # a disturbance of a few turns does not move the median
    is_spread = latencies[-1 - quarter] > _MAX_SPREAD * latencies[quarter]
    return is_spread or median(turn.running for turn in turns) < _MIN_RUNNING


def _time_calls(forward: Forward, inputs: dict[str, Tensor], seconds: float) -> _Turn:
    """Call a model again and again for `seconds`, at least once."""
    times: list[float] = []
    ran = thread_time()
    start = last = perf_counter()
    while not times or last - start < seconds:
        forward(inputs)
        now = perf_counter()
        times.append(now - last)
        last = now
    return _Turn(times, (thread_time() - ran) / max(last - start, 1e-9))
