"""The model to export: a frozen copy of it, example inputs, and results that several formats share."""

from __future__ import annotations

import logging
import math
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.fx import config as fx_config

from trainer.export.cases import BATCH, Case, Forward, forward_of, proof_cases, traced_inputs
from trainer.layout import Document
from trainer.protocols import Batch, Row, Task

_ALIGNMENT = 64  # bytes
_NO_TRACES = "do_not_emit_stack_traces"
_CALIBRATION_BATCH = 8  # samples; calibration may keep all intermediate values of a batch in memory

Result = TypeVar("Result")


def _no_training_batches(count: int) -> Iterable[Batch]:
    return ()


@dataclass(eq=False)
class ExportModel:
    """A trained model with its task and data: artifacts are written from it and proved against it.

    Attributes:
        original: The trained model, on the CPU in float32, in any mode. It is left unchanged.
        task: Provides example inputs, their axes, metrics and files.
        evaluation: Returns the evaluation split in padded batches with targets, the same at each call.
        training: Returns a number of training samples in padded batches, for formats that are calibrated.
        samples: A few rows of the evaluation split as read from the source, at least one.
        architecture: A description (JSON) that rebuilds the model, for formats that contain only weights.
        provenance: Origin of the weights and of the split (JSON). Different models must have different values.
        calibration: Number of training samples for calibration.
        int8: Quantization of activations in int8; None chooses by the model's layers.
        scratch: Folder for files that several formats share, best on the file system of the artifacts; None uses the
            system's temporary folder.
    """

    original: nn.Module
    task: Task
    evaluation: Callable[[], Iterable[Batch]] = tuple
    training: Callable[[int], Iterable[Batch]] = _no_training_batches
    samples: Sequence[Row] = ()
    architecture: Document = field(default_factory=dict)
    provenance: Document = field(default_factory=dict)
    calibration: int = 0
    int8: Literal["dynamic", "static"] | None = None
    scratch: Path | None = None

    def __post_init__(self) -> None:
        self._results: dict[Callable[[ExportModel], Any], Any] = {}

    @cached_property
    def module(self) -> nn.Module:
        """The frozen copy that all formats are written from. Exporters must not change it."""
        return frozen(self.original)

    @property
    def eager_forward(self) -> Forward:
        """The frozen copy as a function of its inputs."""
        return forward_of(self.module)

    @cached_property
    def traced(self) -> dict[str, Tensor]:
        """The inputs that exporters trace or capture the model with."""
        return traced_inputs(self.task)

    @cached_property
    def cases(self) -> list[Case]:
        """Inputs of shapes that are never traced, and the model's outputs. Read this before anything is exported."""
        return proof_cases(self.task, self.eager_forward)

    @property
    def program(self) -> ExportedProgram:
        """The program of torch.export that several formats are converted from, with symbolic axes, captured once.

        Raises:
            Exception: The error of torch.export for a model that it cannot capture, at each access.
        """
        return self.compute_once(_capture_program)

    def calibration_inputs(self) -> list[dict[str, Tensor]]:
        """Return the inputs of the calibration samples in small batches; without samples, the inputs of the cases."""
        places = {
            name: next(place for place, axis in axes.items() if axis == BATCH)
            for name, axes in self.task.axes().items()
        }
        parts: list[dict[str, Tensor]] = []
        for batch in self.training(self.calibration):
            split = {name: torch.split(value, _CALIBRATION_BATCH, places[name]) for name, value in batch.inputs.items()}
            parts += [dict(zip(split, values, strict=True)) for values in zip(*split.values(), strict=True)]
        return parts or [case.inputs for case in self.cases]

    def compute_once(self, compute: Callable[[ExportModel], Result]) -> Result:
        """Return `compute(self)`, computed at the first call: several formats and variants share the result.

        Raises:
            Exception: The error of the first call, at each call.
        """
        if compute not in self._results:
            try:
                self._results[compute] = compute(self)
            except Exception as error:
                self._results[compute] = _Failure(error)
        result: Result | _Failure = self._results[compute]
        if isinstance(result, _Failure):
            raise result.error
        return result


@dataclass(frozen=True)
class _Failure:
    error: Exception


def _capture_program(model: ExportModel) -> ExportedProgram:
    return capture(model.module, model.traced, model.task.axes(), model.task.axis_limits())


def frozen(model: nn.Module) -> nn.Module:
    """Copy a model in evaluation mode without gradients. The copy has its own modules and shares the weights.

    Only weights that are not aligned to 64 bytes, as tensors of a memory-mapped file may be, are copied: kernels add in
    a different order there, so the same weights elsewhere would give results with other last bits.
    """
    return copy_with(model, lambda tensor: tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone())


def scrambled(model: nn.Module) -> nn.Module:
    """Copy a model like `frozen`, with NaN for floating-point weights and other numbers for integer ones.

    Buffers outside the state dict keep their values, because files of weights do not contain them.
    """
    saved = model.state_dict().keys()
    unsaved = {id(buffer) for name, buffer in model.named_buffers(remove_duplicate=False) if name not in saved}

    def scramble(tensor: Tensor) -> Tensor:
        if id(tensor) in unsaved:
            return tensor
        return torch.full_like(tensor, math.nan) if tensor.is_floating_point() else tensor.bitwise_not()

    return copy_with(model, scramble)


def in_float16(model: nn.Module) -> nn.Module:
    """Copy a model like `frozen`, with its floating-point weights in float16."""
    return copy_with(model, lambda tensor: tensor.half() if tensor.is_floating_point() else tensor)


def copy_with(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a model in evaluation mode without gradients and change its parameters and buffers; tied ones stay tied."""
    memo: dict[int, Any] = {id(each): nn.Parameter(change(each).detach(), False) for each in model.parameters()}
    memo |= {id(each): change(each).detach() for each in model.buffers()}
    return deepcopy(model, memo).eval()


def capture(
    model: nn.Module,
    inputs: dict[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
    limits: Mapping[str, tuple[int, int]],
) -> ExportedProgram:
    """Capture the program of a model at `inputs`, with `axes` symbolic within `limits`. It shares the weights."""
    dims: dict[str, Any] = {BATCH: Dim(BATCH, min=1)}
    for axis, (low, high) in limits.items():
        # torch rejects a Dim of a single size, so such an axis is constant.
        dims[axis] = Dim(axis, min=low, max=high) if low < high else None
    shapes = {name: {place: dims[axis] for place, axis in axes[name].items()} for name in inputs}
    with silence():
        program = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine, which every artifact would contain
    return program


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the global generators of Python, NumPy and torch (CPU) after the block."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # Exporting uses only the CPU. Without the empty list, torch would initialize a GPU just to read its state.
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def silence() -> Iterator[None]:
    """Suppress log records, warnings and printed text in the block, and the stack trace of each operation.

    Use it only around calls of exporters. They warn about things that their users cannot change: deprecations inside
    torch, missing optional packages, and sizes that tracing might have frozen (which the proof checks). No artifact
    contains stack traces, which take a quarter of the export of a small graph.
    """
    disabled, traceless = logging.root.manager.disable, getattr(fx_config, _NO_TRACES, False)  # not in torch 2.11
    logging.disable(logging.CRITICAL)
    setattr(fx_config, _NO_TRACES, True)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        setattr(fx_config, _NO_TRACES, traceless)
