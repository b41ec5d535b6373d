"""What is exported: one model, and all that its formats are written from and proved by."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trainer.export.cases import BATCH, Case, Forward, forward_of, proof_cases, traced_inputs
from trainer.export.isolation import silence
from trainer.protocols import Batch, Task


class Subject:
    """A frozen model on the CPU in float32, in evaluation mode, sharing its weights with the one it was made of.

    Args:
        model: In any mode; it stays as it is.
        task: Gives inputs and their axes.
        training: The training split, padded, for formats that measure ranges on it.

    Attributes:
        model: The frozen model. Who writes a format reads it and changes nothing.
        task: As given.
        cases: Inputs of shapes that are never traced, with the model's outputs, computed before anything is exported.
    """

    def __init__(self, model: nn.Module, task: Task, training: Callable[[], Iterable[Batch]] = tuple) -> None:
        self.model = frozen(model)
        self.task = task
        self.cases: list[Case] = proof_cases(task, self.pytorch)
        self._training = training
        self._program: ExportedProgram | Exception | None = None

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
        if self._program is None:
            try:
                axes, limits = self.task.axes(), self.task.axis_limits()
                self._program = capture(self.model, self.traced, axes, limits)
            except Exception as error:
                self._program = error
        if isinstance(self._program, Exception):
            raise self._program
        return self._program

    def calibration(self) -> Iterable[dict[str, Tensor]]:
        """Inputs of the training split, batch by batch; an iterator of its own each time."""
        return (batch.inputs for batch in self._training())


def frozen(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that needs no gradients; its modules are its own, its weights are the model's."""
    weights: dict[int, Any] = {
        id(each): nn.Parameter(each.detach(), requires_grad=False) for each in model.parameters()
    }
    weights |= {id(each): each.detach() for each in model.buffers()}
    return deepcopy(model, weights).eval()


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
        return torch.export.export(model, (), inputs, dynamic_shapes=shapes)
