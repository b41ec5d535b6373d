"""How long a prediction takes, eager and exported, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter, sleep

from torch import Tensor

from trainer.export.cases import Forward, Sizes

EAGER = "pytorch"
"""What eager PyTorch is called among the formats."""

_WARM_UPS = 2  # calls: TorchScript compiles in its first two runs of a shape
_FEWEST_TURNS = 2
_MOST_TURNS = 30
# Idle threads of a runtime spin for a while, at the cost of whatever runs next, and then sleep, at the cost of its own
# next calls. So a turn begins after a pause, and its first calls are not timed.
_PAUSE, _WARMING, _TIMED = 0.02, 0.02, 0.05  # seconds of a turn


@dataclass(frozen=True)
class Timing:
    """Median time of one call at one shape.

    Attributes:
        sizes: The size of each axis.
        milliseconds: For `pytorch` and each format.
    """

    sizes: Sizes
    milliseconds: dict[str, float]

    def speedup(self, name: str) -> float:
        """How many times as fast as eager PyTorch a format is."""
        return self.milliseconds[EAGER] / self.milliseconds[name]


def measure(
    forwards: Mapping[str, Forward], inputs: Sequence[tuple[Sizes, dict[str, Tensor]]], *, seconds: float
) -> list[Timing]:
    """Times every model at every shape, the smallest first, in about `seconds` in all.

    The models take turns, so that a machine that slows down for a while slows all of them; in its turn each runs as
    it does alone. A shape whose fewest calls would not fit into the time that is left, going by the shape before it, is
    left out; the first never is.
    """
    end = perf_counter() + seconds
    ordered = sorted(inputs, key=lambda each: _numbers(each[1]))
    timings: list[Timing] = []
    expected: list[float] = []  # seconds of a call of each model, by each number of the inputs
    for place, (sizes, each) in enumerate(ordered):
        left = end - perf_counter()
        if timings and sum(_least_seconds(call * _numbers(each)) for call in expected) > left:
            break
        timings.append(Timing(sizes, _medians(forwards, each, left / (len(ordered) - place))))
        expected = [milliseconds / 1000 / _numbers(each) for milliseconds in timings[-1].milliseconds.values()]
    return timings


def _least_seconds(call: float) -> float:
    """What the fewest turns of a model take whose calls take so long."""
    return _WARM_UPS * call + _FEWEST_TURNS * (_PAUSE + max(_WARMING, call) + max(_TIMED, call))


def _numbers(inputs: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in inputs.values())


def _medians(forwards: Mapping[str, Forward], inputs: dict[str, Tensor], seconds: float) -> dict[str, float]:
    start = perf_counter()
    for _ in range(_WARM_UPS):
        for forward in forwards.values():
            forward(inputs)
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for turn in range(_MOST_TURNS):
        if turn >= _FEWEST_TURNS and (perf_counter() - start) * (turn + 1) / turn > seconds:
            break  # one more would take too long
        for name, forward in forwards.items():
            sleep(_PAUSE)
            _calls(forward, inputs, _WARMING)
            times[name] += _calls(forward, inputs, _TIMED)
    return {name: 1000 * median(each) for name, each in times.items()}


def _calls(forward: Forward, inputs: dict[str, Tensor], seconds: float) -> list[float]:
    """The seconds of each call, one after the other for `seconds`; one at least."""
    times: list[float] = []
    begin = last = perf_counter()
    while not times or last - begin < seconds:
        forward(inputs)
        now = perf_counter()
        times.append(now - last)
        last = now
    return times
