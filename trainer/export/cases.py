"""The inputs that an artifact is traced, proved and timed with.

A `Sizes` mapping gives the size of each axis: `batch`, `sequence`, or any other name in `Task.axes`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainer.protocols import Task

Forward = Callable[[Mapping[str, Tensor]], Tensor]
"""A model, eager or exported, as a function: inputs by name to the output."""

Sizes = dict[str, int]

BATCH = "batch"
_TRACED_BATCH = 2  # torch.export treats a size of 1 as a constant
_PROOF_BATCHES = (1, 3)
_LARGE_BATCH = 8
_TIMED_FRACTIONS = (8, 2, 1)  # divisors of the largest size


@dataclass(frozen=True)
class Case:
    """Inputs of one shape, and PyTorch's output for them.

    Attributes:
        sizes: Size of each axis.
        padded: True if an input named `...mask` masks anything.
        inputs: The model's inputs.
        expected: The model's output.
    """

    sizes: Sizes
    padded: bool
    inputs: dict[str, Tensor]
    expected: Tensor

    def __str__(self) -> str:
        shape = ", ".join(f"{axis}={size}" for axis, size in self.sizes.items())
        return f"{shape}, {'padded' if self.padded else 'without padding'}"


def forward_of(model: nn.Module) -> Forward:
    """Return an eager model as a `Forward`."""

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = model(**inputs)
        return output

    return forward


def traced_inputs(task: Task) -> dict[str, Tensor]:
    """Return the inputs for exporters: two samples, every other axis at half of its largest size."""
    sizes = {axis: _traced_size(*limits) for axis, limits in task.axis_limits().items()}
    return task.example({BATCH: _TRACED_BATCH, **sizes}, np.random.default_rng(0))


def proof_cases(task: Task, forward: Forward) -> list[Case]:
    """Return cases of shapes that are never traced, with the outputs of `forward`.

    Batches of 1, 3 and 8; each axis at its smallest, an odd and its largest size; with and without padding.
    """
    generator = np.random.default_rng(1)
    cases = []
    for sizes in _proof_sizes(task.axis_limits()):
        inputs = _padded_example(task, sizes, generator)
        unpadded = {name: torch.ones_like(value) if name.endswith("mask") else value for name, value in inputs.items()}
        cases.append(Case(sizes, False, unpadded, forward(unpadded)))
        if any(not torch.equal(unpadded[name], inputs[name]) for name in inputs):
            cases.append(Case(sizes, True, inputs, forward(inputs)))
    return cases


def timed_inputs(task: Task) -> list[tuple[Sizes, dict[str, Tensor]]]:
    """Return inputs for the timings: batches of 1 and 8, axes at an eighth, half and all of their largest size."""
    limits = task.axis_limits()
    lengths = [
        {axis: max(low, high // fraction) for axis, (low, high) in limits.items()} for fraction in _TIMED_FRACTIONS
    ]
    combinations = [{BATCH: batch, **length} for batch in (1, _LARGE_BATCH) for length in lengths]
    return [(sizes, task.example(sizes, np.random.default_rng(2))) for sizes in _distinct(combinations)]


def _padded_example(task: Task, sizes: Sizes, generator: np.random.Generator) -> dict[str, Tensor]:
    """Return an example without its first sample, the only one that fills the width: also a batch of 1 is padded."""
    places = {name: next(place for place, axis in axes.items() if axis == BATCH) for name, axes in task.axes().items()}
    larger = task.example({**sizes, BATCH: sizes[BATCH] + 1}, generator)
    return {name: value.narrow(places[name], 1, sizes[BATCH]).contiguous() for name, value in larger.items()}


def _proof_sizes(limits: Mapping[str, tuple[int, int]]) -> list[Sizes]:
    choices = {axis: (low, _odd_size(low, high), high) for axis, (low, high) in limits.items()}
    # Each axis is one choice ahead of the axis before it, so that no two axes grow together in all cases.
    rotations = [{axis: choices[axis][(turn + place) % 3] for place, axis in enumerate(choices)} for turn in range(3)]
    sizes = [{BATCH: batch, **rotation} for batch in _PROOF_BATCHES for rotation in rotations]
    sizes.append({BATCH: _LARGE_BATCH, **rotations[1]})
    return _distinct(sizes)


def _distinct(sizes: list[Sizes]) -> list[Sizes]:
    return list({tuple(each.items()): each for each in sizes}.values())


def _traced_size(low: int, high: int) -> int:
    return max((low + high) // 2, min(2, high))


def _odd_size(low: int, high: int) -> int:
    odd = [size for size in range((low + 1) | 1, high, 2) if size != _traced_size(low, high)]
    return odd[len(odd) // 3] if odd else high
