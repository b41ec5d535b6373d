"""The proof that an artifact computes what PyTorch computes; what it finds wrong is a `ProofError`."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from trainer.errors import DataError, Interrupted, ProofError, format_error
from trainer.export.cases import Case, Forward, Sizes
from trainer.export.storage import storage_fault

_SHAPES_REMEDY = "The file is removed: it would be wrong, or refuse to run, at shapes other than those it was made with"
_TOLERANCE_REMEDY = "The file is removed; export.tolerance is the largest difference allowed"
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_ADVICE = re.compile(r"For more information, run with TORCH_LOGS=\S+ |If you're using .*")
"""What torch says of its own settings, which are not the user's."""

_ROUNDING = 1e-6  # of a metric: float32 rounding; one changed decision of a million samples is more


Dimensions = dict[str, list[int | str | None]]
"""The shape of each input or output of a graph; a string is a symbolic size."""


@dataclass(frozen=True)
class Limits:
    """What an artifact may differ by.

    Attributes:
        tolerance: Largest absolute difference of an output from PyTorch's, of exact formats.
        metric_budget: What the task's metric may lose: absolute for metrics up to 1, relative to PyTorch's beyond.
    """

    tolerance: float
    metric_budget: float

    def of(self, *, exact: bool, bitwise: bool) -> float:
        """The tolerance of a format; of one that is not exact any difference is recorded, none refused."""
        return 0.0 if bitwise else self.tolerance if exact else inf


@dataclass(frozen=True)
class Tried:
    """One shape an artifact agreed at.

    Attributes:
        sizes: The size of each axis.
        padded: Whether the inputs had padding, where the shape leaves room for any.
        difference: Largest absolute difference of an output.
    """

    sizes: Sizes
    padded: bool
    difference: float


@contextmanager
def turned_into_proof_error(artifact: str, problem: str, remedy: str) -> Iterator[None]:
    """Whatever exporters and runtimes raise (they agree on no type) becomes a `ProofError` that names `artifact`.

    Not so what is no fault of the artifact: bad data, a signal, a full disk.
    """
    try:
        yield
    except (ProofError, DataError, Interrupted):
        raise
    except Exception as error:
        if storage_fault(error) is not None:
            raise
        if (signal := _signal_in(error)) is not None:
            raise signal from error
        raise ProofError(format_error(artifact, f"{problem}: {_summary(error)}", remedy)) from error


def _signal_in(error: BaseException | None) -> Interrupted | None:
    """The signal that a library took for a fault of its own."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error


def prove_inputs(
    artifact: str,
    dimensions: Mapping[str, Sequence[int | str | None]],
    axes: Mapping[str, Mapping[int, str]],
    limits: Mapping[str, tuple[int, int]],
) -> None:
    """The graph has the task's inputs and no other, and each axis is one symbolic size that it shares with no other."""
    if set(dimensions) != set(axes):
        problem = f"must have the inputs {', '.join(axes)}"
        raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=sorted(dimensions)))
    axis_of: dict[int | str | None, str] = {}
    for name, places in axes.items():
        for place, axis in places.items():
            low, high = limits.get(axis, (1, inf))
            if low == high:
                continue
            size = dimensions[name][place]
            problem = f"dimension {place} of {name} must be symbolic ({axis})"
            if not isinstance(size, str):
                raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=size))
            if axis_of.setdefault(size, axis) != axis:
                problem += f" and free of the axis {axis_of[size]}"
                raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=size))


def prove_output(artifact: str, dimensions: Sequence[int | str | None], cases: Sequence[Case]) -> None:
    """Every dimension of the output that differs between the cases is symbolic in the graph."""
    shapes = [tuple(case.expected.shape) for case in cases]
    if any(len(shape) != len(dimensions) for shape in shapes):
        problem = f"the output must have {len(shapes[0])} dimensions"
        raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=list(dimensions)))
    for place, size in enumerate(dimensions):
        if len({shape[place] for shape in shapes}) > 1 and isinstance(size, int):
            problem = f"dimension {place} of the output must be symbolic"
            raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=size))


def prove_cases(artifact: str, forward: Forward, cases: Sequence[Case], tolerance: float) -> list[Tried]:
    """The artifact agrees with PyTorch in every case (tolerance as in `difference`)."""
    tried = []
    for case in cases:
        with turned_into_proof_error(artifact, f"fails at {case}", _SHAPES_REMEDY):
            got = forward(case.inputs)
        apart = difference(artifact, f"at {case}", case.inputs, case.expected, got, tolerance)
        tried.append(Tried(case.sizes, case.padded, apart))
    return tried


def difference(
    artifact: str, where: str, inputs: Mapping[str, Tensor], expected: Tensor, got: Tensor, tolerance: float
) -> float:
    """Largest absolute difference between two outputs of the same `inputs`.

    Raises:
        ProofError: It is above `tolerance`, the shapes differ, or there is NaN where there was a number.
    """
    named = f"{where} ({shapes_of(inputs)})"
    if got.shape != expected.shape:
        problem = f"the output {named} must have the shape {tuple(expected.shape)}"
        raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=tuple(got.shape)))
    wanted, found = expected.double(), got.double()
    # Equal infinities are equal; a NaN on either side is as far apart as can be.
    apart = torch.where(wanted == found, 0.0, (wanted - found).abs()).nan_to_num(nan=inf, posinf=inf)
    worst = int(apart.argmax())
    largest = apart.flatten()[worst].item()
    if tolerance == inf and bool((~found.isfinite() & wanted.isfinite()).any()):
        value = found.flatten()[worst].item()
        raise ProofError(format_error(artifact, f"the output {named} must be finite", _TOLERANCE_REMEDY, value=value))
    if largest > tolerance:
        place = [int(index) for index in np.unravel_index(worst, tuple(expected.shape))]
        problem = f"output{place} {named} must be PyTorch's {wanted.flatten()[worst]:.9g} within {tolerance:g}"
        raise ProofError(format_error(artifact, problem, _TOLERANCE_REMEDY, value=found.flatten()[worst].item()))
    return largest


def shapes_of(inputs: Mapping[str, Tensor]) -> str:
    """Inputs by name and shape, for a message."""
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())


def prove_metric(
    artifact: str, metric: str, expected: float, got: float, *, higher_is_better: bool | None, budget: float
) -> None:
    """The artifact's metric is at most `budget` worse than PyTorch's; further off, where neither side is better.

    Beyond a metric of 1 the budget is a share of it, as of a perplexity. One that is NaN of both judges nothing.
    """
    if expected == got or (np.isnan(expected) and np.isnan(got)):
        return
    gain = got - expected
    loss = abs(gain) if higher_is_better is None else -gain if higher_is_better else gain
    scale = max(1.0, abs(expected))
    if not loss <= (budget + _ROUNDING) * scale:
        problem = f"{metric} over the evaluation split must be within {budget * scale:g} of PyTorch's {expected:.9g}"
        remedy = "The file is removed; export.metric_budget is the loss allowed"
        raise ProofError(format_error(artifact, problem, remedy, value=got))


def _summary(error: BaseException) -> str:
    """What the first cause of an error says, in at most a few hundred characters of one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(_COLOUR.sub("", str(error)).split()) or type(error).__name__
    return shorten(_ADVICE.sub("", text), 300, placeholder=" …").rstrip(".")
