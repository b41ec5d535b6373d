"""Comparisons of an artifact with PyTorch; a difference beyond the limits raises `ProofError`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, sqrt
from textwrap import shorten

import numpy as np
import torch
from torch import Tensor

from trainer.errors import DataError, Interrupted, ProofError, format_error, is_out_of_memory
from trainer.export.cases import Case, Forward, Sizes
from trainer.files.storage_errors import find_storage_error
from trainer.protocols import Target, Task
from trainer.spans import possible_spans

_SHAPES_REMEDY = "The file is removed: it would be wrong, or fail, at shapes that it was not exported with"
_TOLERANCE_REMEDY = "The file is removed; export.tolerance is the largest difference allowed"
_AGREEMENT_REMEDY = "The file is removed: its predictions differ from the model's although the metric passes"
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_ADVICE = re.compile(r"For more information, run with TORCH_LOGS=\S+ |If you're using .*")
"""Advice in torch's errors about settings that users of this package do not have."""

_ROUNDING = 1e-6  # of a metric: float32 rounding; one changed decision in a million samples is more
_MIN_AGREEMENT = 0.75
_MAX_RELATIVE_DIFFERENCE = 0.5
_MIN_SPREAD = 0.2  # relative to the size: rounding is relative to the size, also of outputs that hardly differ


Dimensions = dict[str, list[int | str | None]]
"""Shape of each input or output of a graph; a string is a symbolic size."""


@dataclass(frozen=True)
class Limits:
    """The differences that an artifact may have.

    Attributes:
        tolerance: Largest absolute difference of an output from PyTorch's, for exact formats.
        metric_budget: Largest loss of the task's metric: absolute for metrics up to 1, relative to PyTorch's above.
    """

    tolerance: float
    metric_budget: float

    def tolerance_of(self, *, exact: bool, bitwise: bool) -> float:
        """Return the tolerance of a format. Differences of an inexact format are recorded and never refused."""
        return 0.0 if bitwise else self.tolerance if exact else inf


@dataclass(frozen=True)
class ShapeResult:
    """One shape at which an artifact agrees with PyTorch.

    Attributes:
        sizes: Size of each axis.
        padded: True if the inputs had padding.
        difference: Largest absolute difference of an output.
    """

    sizes: Sizes
    padded: bool
    difference: float


@contextmanager
def proof_errors(artifact: str, problem: str, remedy: str) -> Iterator[None]:
    """Turn any exception of an exporter or a runtime into a `ProofError` that names `artifact`.

    Errors of the data, signals, full disks and lack of memory are not the artifact's fault and keep their types.
    """
    try:
        yield
    except (ProofError, DataError, Interrupted):
        raise
    except Exception as error:
        if find_storage_error(error) is not None or is_out_of_memory(error):
            raise
        if (signal := _find_signal(error)) is not None:
            raise signal from error
        raise ProofError(format_error(artifact, f"{problem}: {_summary(error)}", remedy)) from error


def _find_signal(error: BaseException | None) -> Interrupted | None:
    """Return the signal that a library caught and reported as an error of its own."""
    while error is not None and not isinstance(error, Interrupted):
        error = error.__cause__ or error.__context__
    return error


def _summary(error: BaseException) -> str:
    """Return the message of an error's first cause in one line of at most 300 characters."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(_COLOR.sub("", str(error)).split()) or type(error).__name__
    return shorten(_ADVICE.sub("", text), 300, placeholder=" …").rstrip(".")


def check_inputs(
    artifact: str,
    dimensions: Mapping[str, Sequence[int | str | None]],
    axes: Mapping[str, Mapping[int, str]],
    limits: Mapping[str, tuple[int, int]],
) -> None:
    """Check that a graph has exactly the task's inputs, and that each axis is a symbolic size of its own.

    Raises:
        ProofError: An input is missing or unexpected, or a dimension is frozen or tied to another axis.
    """
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
                problem += f" and independent of the axis {axis_of[size]}"
                raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=size))


def check_output(artifact: str, dimensions: Sequence[int | str | None], cases: Sequence[Case]) -> None:
    """Check that every dimension of the output that differs between the cases is symbolic in the graph.

    Raises:
        ProofError: A dimension is frozen, or the output has another number of dimensions.
    """
    shapes = [tuple(case.expected.shape) for case in cases]
    if any(len(shape) != len(dimensions) for shape in shapes):
        problem = f"the output must have {len(shapes[0])} dimensions"
        raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=list(dimensions)))
    for place, size in enumerate(dimensions):
        if len({shape[place] for shape in shapes}) > 1 and isinstance(size, int):
            problem = f"dimension {place} of the output must be symbolic"
            raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=size))


def compare_cases(artifact: str, forward: Forward, cases: Sequence[Case], tolerance: float) -> list[ShapeResult]:
    """Run an artifact on every case.

    Raises:
        ProofError: It fails, or `largest_difference` refuses an output.
    """
    results = []
    for case in cases:
        with proof_errors(artifact, f"fails at {case}", _SHAPES_REMEDY):
            output = forward(case.inputs)
        difference = largest_difference(artifact, f"at {case}", case.inputs, case.expected, output, tolerance)
        results.append(ShapeResult(case.sizes, case.padded, difference))
    return results


def largest_difference(
    artifact: str, where: str, inputs: Mapping[str, Tensor], expected: Tensor, output: Tensor, tolerance: float
) -> float:
    """Return the largest absolute difference between PyTorch's output `expected` and an artifact's for the same inputs.

    Raises:
        ProofError: It exceeds `tolerance`, the shapes differ, or a number has become NaN or infinite.
    """
    location = f"{where} ({format_shapes(inputs)})"
    if output.shape != expected.shape:
        problem = f"the output {location} must have the shape {tuple(expected.shape)}"
        raise ProofError(format_error(artifact, problem, _SHAPES_REMEDY, value=tuple(output.shape)))
    theirs, ours = expected.double(), output.double()
    # Equal infinities are equal; a NaN on either side is an infinite difference.
    differences = torch.where(theirs == ours, 0.0, (theirs - ours).abs()).nan_to_num(nan=inf, posinf=inf)
    worst = int(differences.argmax())
    largest = differences.flatten()[worst].item()
    if tolerance == inf and bool((~ours.isfinite() & theirs.isfinite()).any()):
        problem = f"the output {location} must be finite"
        raise ProofError(format_error(artifact, problem, _TOLERANCE_REMEDY, value=ours.flatten()[worst].item()))
    if largest > tolerance:
        place = [int(index) for index in np.unravel_index(worst, tuple(expected.shape))]
        problem = f"output{place} {location} must be PyTorch's {theirs.flatten()[worst]:.9g} within {tolerance:g}"
        raise ProofError(format_error(artifact, problem, _TOLERANCE_REMEDY, value=ours.flatten()[worst].item()))
    return largest


def format_shapes(inputs: Mapping[str, Tensor]) -> str:
    """Return names and shapes of inputs for a message."""
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())


def check_metric(
    artifact: str, metric: str, expected: float, value: float, *, higher_is_better: bool | None, budget: float
) -> None:
    """Check that an artifact's metric is at most `budget` worse than PyTorch's `expected`, on either side if None.

    The budget is relative to PyTorch's metric if that is above 1 (a perplexity). NaN on both sides passes.

    Raises:
        ProofError: The metric is worse.
    """
    if expected == value or (np.isnan(expected) and np.isnan(value)):
        return
    gain = value - expected
    loss = abs(gain) if higher_is_better is None else -gain if higher_is_better else gain
    scale = max(1.0, abs(expected))
    if not loss <= (budget + _ROUNDING) * scale:
        problem = f"{metric} over the evaluation split must be within {budget * scale:g} of PyTorch's {expected:.9g}"
        remedy = "The file is removed; export.metric_budget is the largest loss allowed"
        raise ProofError(format_error(artifact, problem, remedy, value=value))


def judging_metric(task: Task) -> str | None:
    """Return the metric that judges artifacts: the monitored one, or the first if the loss is monitored.

    None for a task without metrics, for which only outputs are compared.
    """
    names = [str(name) for name in task.metrics()]
    return task.monitor if task.monitor in names else next(iter(names), None)


class OutputAgreement:
    """Agreement of an artifact's outputs with PyTorch's over the evaluation split, independent of any metric.

    Args:
        target: Type of the task's targets, which determines the decision that an output stands for.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._decisions = 0
        self._equal_decisions = 0
        self._squared_differences = 0.0
        self._squares = 0.0
        self._sums: dict[int, Tensor] = {}
        self._rows: dict[int, int] = {}

    @property
    def decision_agreement(self) -> float | None:
        """Share of equal decisions, in [0, 1]; None if outputs are no decisions. See `decisions`."""
        return self._equal_decisions / self._decisions if self._decisions else None

    @property
    def relative_difference(self) -> float:
        """The difference divided by the spread of PyTorch's outputs around their means; about 1 for constant outputs.

        Both are roots of sums of squares. A fifth of the outputs' size is the smallest spread, for outputs that hardly
        differ from each other.
        """
        means = sum(float(total.square().sum()) / self._rows[width] for width, total in self._sums.items())
        scale = sqrt(max(self._squares - means, _MIN_SPREAD**2 * self._squares))
        return sqrt(self._squared_differences) / scale if scale else inf if self._squared_differences else 0.0

    def update(self, expected: Tensor, output: Tensor, target: Tensor) -> None:
        """Add outputs (B, ..., C) of PyTorch and of the artifact, except for positions without a target."""
        if self._target == "class" and target.shape == expected.shape[:-1]:
            expected, output = expected[target >= 0], output[target >= 0]
        theirs, ours = decisions(expected, self._target), decisions(output, self._target)
        if self._target == "spans" and theirs is not None and ours is not None:
            # Nearly all spans have no class on either side, whatever the model answers.
            either = (theirs | ours) & possible_spans(target)[:, None]
            theirs, ours = theirs[either], ours[either]
        if theirs is not None and ours is not None:
            self._decisions += theirs.numel()
            self._equal_decisions += int((theirs == ours).sum())
        width = expected.shape[-1] if expected.ndim > 1 else 1
        # `largest_difference` judges infinite outputs.
        finite = expected.isfinite() & output.isfinite()
        outputs = torch.where(finite, expected, 0.0).double().reshape(-1, width)
        self._squared_differences += float(
            (torch.where(finite, output, 0.0).reshape(-1, width) - outputs).square().sum()
        )
        self._squares += float(outputs.square().sum())
        self._sums[width] = self._sums.get(width, torch.zeros(width)) + outputs.sum(0)
        self._rows[width] = self._rows.get(width, 0) + len(outputs)

    def check(self, artifact: str) -> None:
        """Check for differences that a metric could hide.

        Raises:
            ProofError: Too many decisions differ, or outputs are nearly as far from PyTorch's as arbitrary ones.
        """
        if self.decision_agreement is not None and self.decision_agreement < _MIN_AGREEMENT:
            problem = f"decisions over the evaluation split must agree with PyTorch's in {_MIN_AGREEMENT:g} or more"
            raise ProofError(format_error(artifact, problem, _AGREEMENT_REMEDY, value=self.decision_agreement))
        if not self.relative_difference <= _MAX_RELATIVE_DIFFERENCE:
            problem = (
                f"outputs over the evaluation split must be within {_MAX_RELATIVE_DIFFERENCE:g} of the spread of "
                "PyTorch's"
            )
            raise ProofError(format_error(artifact, problem, _AGREEMENT_REMEDY, value=self.relative_difference))


def decisions(output: Tensor, target: Target) -> Tensor | None:
    """Return the decisions of an output (B, ..., C): the most likely class, or each label that is more likely than not.

    Of scores of spans (B, C, T, T), each span that is predicted.

    None if outputs are not decisions.
    """
    if target == "class" and output.ndim > 1 and output.shape[-1] > 1:
        return output.argmax(-1)
    return output > 0 if target in ("multi_hot", "spans") else None
