"""The inputs an artifact is traced, proved and timed with.

Sizes map an axis (`batch`, `sequence`, whatever `Task.axes` names) to its size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from trainer.protocols import Task

Forward = Callable[[Mapping[str, Tensor]], Tensor]
"""The model, eager or exported: inputs by name to the output."""

Sizes = dict[str, int]

BATCH = "batch"
_TRACED_BATCH = 2  # torch.export takes a size of 1 for a constant
_TRIED_BATCHES = (1, 3)
_LARGE_BATCH = 8
_TIMED_PARTS = (8, 2, 1)


@dataclass(frozen=True)
class Case:
    """Inputs of one shape and what PyTorch makes of them.

    Attributes:
        sizes: The size of each axis.
        padded: Whether an input named `...mask` hides anything.
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
    """The eager model as a `Forward`."""

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = model(**inputs)
        return output

    return forward


def traced_inputs(task: Task) -> dict[str, Tensor]:
    """What the exporters see: two samples, every other axis at half its largest size."""
    sizes = {axis: _traced(*limits) for axis, limits in task.axis_limits().items()}
    return task.example({BATCH: _TRACED_BATCH, **sizes}, np.random.default_rng(0))


def proof_cases(task: Task, pytorch: Forward) -> list[Case]:
    """Shapes that are never traced: batch 1, odd and larger, each axis smallest, odd and largest, padded and not."""
    generator = np.random.default_rng(1)
    cases = []
    for sizes in _proof_sizes(task.axis_limits()):
        inputs = _all_padded(task, sizes, generator)
        filled = {name: torch.ones_like(value) if name.endswith("mask") else value for name, value in inputs.items()}
        cases.append(Case(sizes, False, filled, pytorch(filled)))
        if any(not torch.equal(filled[name], inputs[name]) for name in inputs):
            cases.append(Case(sizes, True, inputs, pytorch(inputs)))
    return cases


def timed_inputs(task: Task) -> list[tuple[Sizes, dict[str, Tensor]]]:
    """Inputs for the table of timings: one sample and several, at an eighth, at half and at all of the largest size."""
    limits = task.axis_limits()
    lengths = [{axis: max(low, high // part) for axis, (low, high) in limits.items()} for part in _TIMED_PARTS]
    every = [{BATCH: batch, **length} for batch in (1, _LARGE_BATCH) for length in lengths]
    sizes = list({tuple(each.items()): each for each in every}.values())
    return [(each, task.example(each, np.random.default_rng(2))) for each in sizes]


def _all_padded(task: Task, sizes: Sizes, generator: np.random.Generator) -> dict[str, Tensor]:
    """An example of `sizes` without the sample that may fill the width alone: then a batch of 1 is padded, too."""
    places = {name: next(place for place, axis in axes.items() if axis == BATCH) for name, axes in task.axes().items()}
    more = task.example({**sizes, BATCH: sizes[BATCH] + 1}, generator)
    return {name: value.narrow(places[name], 1, sizes[BATCH]).contiguous() for name, value in more.items()}


def _proof_sizes(limits: Mapping[str, tuple[int, int]]) -> list[Sizes]:
    picks = _picks(limits)
    # Each axis is one pick ahead of the one before it, so that no two axes grow together in all cases.
    rotations = [{axis: picks[axis][(turn + place) % 3] for place, axis in enumerate(picks)} for turn in range(3)]
    sizes = [{BATCH: batch, **rotation} for batch in _TRIED_BATCHES for rotation in rotations]
    sizes.append({BATCH: _LARGE_BATCH, **rotations[1]})
    return list({tuple(each.items()): each for each in sizes}.values())


def _picks(limits: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int, int]]:
    return {axis: (low, _odd(low, high), high) for axis, (low, high) in limits.items()}


def _traced(low: int, high: int) -> int:
    return max((low + high) // 2, min(2, high))


def _odd(low: int, high: int) -> int:
    odd = [size for size in range((low + 1) | 1, high, 2) if size != _traced(low, high)]
    return odd[len(odd) // 3] if odd else high
