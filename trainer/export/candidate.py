"""One format of a model on its way to being published."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trainer.export.cases import Case, Forward, traced_inputs
from trainer.export.evaluation import Comparison
from trainer.export.onnx import OUTPUT, capture, load_onnx, write_onnx
from trainer.export.proof import Tried, prove_cases, prove_inputs, prove_metric, prove_output, turned_into_proof_error
from trainer.export.torchscript import load_torchscript, write_torchscript
from trainer.protocols import Task

FILES = {"onnx": "model.onnx", "torchscript": "model.torchscript.pt"}
"""The file of each format."""

_EXPORT_REMEDY = "Keep input sizes symbolic in forward (no int() of a size, no loop over it), or leave out this format"


@dataclass(frozen=True)
class Candidate:
    """An artifact, loaded from its staged file.

    Attributes:
        name: The format.
        forward: The artifact.
        tried: The shapes it agreed at.
        comparison: With PyTorch on real data; empty until the evaluation split has been run.
        details: What the manifest says of this format alone.
    """

    name: str
    forward: Forward
    tried: list[Tried]
    comparison: Comparison
    details: dict[str, Any]

    @property
    def largest_difference(self) -> float:
        """Of any output, over all shapes tried and the evaluation split."""
        return max(self.comparison.largest_difference, *(each.difference for each in self.tried))

    def prove_scores(self, pytorch: dict[str, float], task: Task, budget: float) -> None:
        """Raises what the evaluation split found.

        Raises:
            ProofError: An output differed, or the task's metric is worse than PyTorch's by more than `budget`.
        """
        if self.comparison.failure is not None:
            raise self.comparison.failure
        prove_metric(
            FILES[self.name],
            task.monitor,
            pytorch[task.monitor],
            self.comparison.values()[task.monitor],
            higher_is_better=task.metrics()[task.monitor].higher_is_better,
            budget=budget,
        )


def export_candidate(
    name: str, stage: Path, model: nn.Module, task: Task, cases: Sequence[Case], tolerance: float
) -> Candidate:
    """Writes one format into `stage`, loads it afresh and proves it at the shapes of `cases`.

    Raises:
        ProofError: It cannot be written, loaded or run, a dimension is frozen, or an output differs.
    """
    write_and_load = {"onnx": _onnx, "torchscript": _torchscript}[name]
    forward, details = write_and_load(stage / FILES[name], model, task, cases)
    tried = prove_cases(FILES[name], forward, cases, tolerance)
    return Candidate(
        name, forward, tried, Comparison(FILES[name], forward, task.metrics(), tolerance, task.target), details
    )


def files_of(stage: Path, name: str) -> list[Path]:
    """The files of one format: the main one, then what it needs beside it."""
    return sorted(stage.glob(f"{FILES[name]}*"))


def _onnx(path: Path, model: nn.Module, task: Task, cases: Sequence[Case]) -> tuple[Forward, dict[str, Any]]:
    axes, limits = task.axes(), task.axis_limits()
    with turned_into_proof_error(path.name, "cannot be exported", _EXPORT_REMEDY):
        opset = write_onnx(capture(model, traced_inputs(task), axes, limits), path, axes)
    with turned_into_proof_error(path.name, "cannot be loaded", _EXPORT_REMEDY):
        forward, inputs, outputs = load_onnx(path)
    prove_inputs(path.name, inputs, axes, limits)
    prove_output(path.name, outputs[OUTPUT], cases)
    return forward, {"opset": opset, "output": {"name": OUTPUT, "shape": outputs[OUTPUT]}}


def _torchscript(path: Path, model: nn.Module, task: Task, cases: Sequence[Case]) -> tuple[Forward, dict[str, Any]]:
    inputs = traced_inputs(task)
    with turned_into_proof_error(path.name, "cannot be exported", _EXPORT_REMEDY):
        write_torchscript(model, inputs, path)
    with turned_into_proof_error(path.name, "cannot be loaded", _EXPORT_REMEDY):
        return load_torchscript(path, tuple(inputs)), {"inputs": list(inputs)}
