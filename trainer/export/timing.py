"""How long a prediction takes, eager and exported, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

from torch import Tensor

from trainer.export.cases import Forward, Sizes

EAGER = "pytorch"
"""What eager PyTorch is called among the formats."""

_WARM_UPS = 2  # TorchScript compiles in its first two runs of a shape
_FEWEST_ROUNDS = 3
_MOST_ROUNDS = 200


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

    The models take turns, so that a machine that slows down for a while slows all of them. A shape whose fewest calls
    would not fit into the time that is left, going by the shape before it, is left out; the first never is.
    """
    end = perf_counter() + seconds
    ordered = sorted(inputs, key=lambda each: _numbers(each[1]))
    timings: list[Timing] = []
    expected = 0.0  # seconds of one call of each model, by each number of the inputs
    for place, (sizes, each) in enumerate(ordered):
        left = end - perf_counter()
        if timings and expected * _numbers(each) * (_WARM_UPS + _FEWEST_ROUNDS) > left:
            break
        timings.append(Timing(sizes, _medians(forwards, each, left / (len(ordered) - place))))
        expected = sum(timings[-1].milliseconds.values()) / 1000 / _numbers(each)
    return timings


def _numbers(inputs: Mapping[str, Tensor]) -> int:
    return sum(value.numel() for value in inputs.values())


def _medians(forwards: Mapping[str, Forward], inputs: dict[str, Tensor], seconds: float) -> dict[str, float]:
    start = perf_counter()
    for _ in range(_WARM_UPS):
        for forward in forwards.values():
            forward(inputs)
    times: dict[str, list[float]] = {name: [] for name in forwards}
    for done in range(_MOST_ROUNDS):
        if done >= _FEWEST_ROUNDS and perf_counter() - start > seconds:
            break
        for name, forward in forwards.items():
            begin = perf_counter()
            forward(inputs)
            times[name].append(perf_counter() - begin)
    return {name: 1000 * median(each) for name, each in times.items()}
