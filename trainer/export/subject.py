"""What is exported: one model, and all that its formats are written from and proved by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from trainer.export.cases import BATCH, Case, Forward, forward_of, proof_cases, traced_inputs
from trainer.export.isolation import silence
from trainer.protocols import Batch, Task

_ALIGNMENT = 64

Made = TypeVar("Made")

_CALIBRATED = 8  # samples at a time: whoever measures ranges may keep all values of a model


class Subject:
    """A frozen model on the CPU in float32, in evaluation mode, sharing its weights with the one it was made of.

    Args:
        model: In any mode; it stays as it is.
        task: Gives inputs and their axes.
        training: Training samples, padded, for formats that measure ranges on them.
        architecture: What makes the model again beside its weights, for formats that hold weights alone (JSON).
        int8: How activations are quantized in int8; None: as fits the model.
        scratch: Where files lie that formats share, best on the file system of the artifacts; None: among the system's
            temporary files.

    Attributes:
        model: The frozen model. Who writes a format reads it and changes nothing.
        task: As given.
        architecture: As given.
        int8: As given.
        scratch: As given.
        cases: Inputs of shapes that are never traced, with the model's outputs, computed before anything is exported.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        training: Callable[[], Iterable[Batch]] = tuple,
        *,
        architecture: Mapping[str, Any] | None = None,
        int8: Literal["dynamic", "static"] | None = None,
        scratch: Path | None = None,
    ) -> None:
        self.model = frozen(model)
        self.task = task
        self.architecture = architecture or {}
        self.int8 = int8
        self.scratch = scratch
        self.cases: list[Case] = proof_cases(task, self.pytorch)
        self._training = training
        self._made: dict[Callable[[Subject], Any], Any] = {}

    @property
    def pytorch(self) -> Forward:
        """The model as a function of its inputs."""
        return forward_of(self.model)

    @cached_property
    def traced(self) -> dict[str, Tensor]:
        """The inputs that exporters see."""
        return traced_inputs(self.task)

    @property
    def program(self) -> ExportedProgram:
        """The program of torch.export that several formats are made of: captured once, its axes symbolic.

        Raises:
            Exception: Whatever torch.export says of a model that it cannot capture, to each who asks.
        """
        return self.once(_program)

    def calibration(self) -> list[dict[str, Tensor]]:
        """Inputs of the training samples, a few at a time; where there are none, those of the cases."""
        places = {
            name: next(at for at, axis in axes.items() if axis == BATCH) for name, axes in self.task.axes().items()
        }
        parts: list[dict[str, Tensor]] = []
        for batch in self._training():
            split = {name: torch.split(value, _CALIBRATED, places[name]) for name, value in batch.inputs.items()}
            parts += [dict(zip(split, values, strict=True)) for values in zip(*split.values(), strict=True)]
        return parts or [case.inputs for case in self.cases]

    def once(self, make: Callable[[Subject], Made]) -> Made:
        """What `make` gives for this subject, made when first asked for: several formats and variants share it.

        Raises:
            Exception: What `make` raised, to each who asks.
        """
        if make not in self._made:
            try:
                self._made[make] = make(self)
            except Exception as error:
                self._made[make] = _Failed(error)
        found: Made | _Failed = self._made[make]
        if isinstance(found, _Failed):
            raise found.error
        return found


@dataclass(frozen=True)
class _Failed:
    error: Exception


def _program(subject: Subject) -> ExportedProgram:
    return capture(subject.model, subject.traced, subject.task.axes(), subject.task.axis_limits())


def frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that needs no gradients; its modules are its own, its weights are the model's.

    Those alone are copied that lie at no multiple of 64 bytes, as tensors of a mapped file may: kernels sum in another
    order there, and the bits of what is computed would not be those of the same weights elsewhere.
    """
    return copy_with(model, lambda tensor: tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone())


def scrambled(model: nn.Module) -> nn.Module:
    """A copy like that of `frozen`, each of whose weights is NaN, or, of integers, another number.

    What is in no state dict is the model's: it is not what a file of weights brings back.
    """
    saved = model.state_dict().keys()
    kept = {id(each) for name, each in model.named_buffers(remove_duplicate=False) if name not in saved}

    def scramble(tensor: Tensor) -> Tensor:
        if id(tensor) in kept:
            return tensor
        return torch.full_like(tensor, math.nan) if tensor.is_floating_point() else tensor.bitwise_not()

    return copy_with(model, scramble)


def copy_with(model: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """A copy in evaluation mode without gradients, its parameters and buffers changed; shared ones stay shared."""
    memo: dict[int, Any] = {id(each): nn.Parameter(change(each).detach(), False) for each in model.parameters()}
    memo |= {id(each): change(each).detach() for each in model.buffers()}
    return deepcopy(model, memo).eval()


def capture(
    model: nn.Module,
    inputs: dict[str, Tensor],
    axes: Mapping[str, Mapping[int, str]],
    limits: Mapping[str, tuple[int, int]],
) -> ExportedProgram:
    """The program of a model at `inputs`; `axes` stay symbolic within `limits`. Its weights are the model's."""
    dims: dict[str, Any] = {BATCH: Dim(BATCH, min=1)}
    for axis, (low, high) in limits.items():
        # An axis of one size is no axis, and torch refuses to make a Dim of it.
        dims[axis] = Dim(axis, min=low, max=high) if low < high else None
    shapes = {name: {place: dims[axis] for place, axis in axes[name].items()} for name in inputs}
    with silence():
        program = torch.export.export(model, (), inputs, dynamic_shapes=shapes)
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine, which would leave it with every artifact
    return program
