"""The model as a program of torch.export, a `.pt2`.

torch reads a `.pt2` with pickle: loading one runs whatever code is in it. Load those alone that you trust, as code.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from trainer.export.cases import Forward
from trainer.export.isolation import silence
from trainer.export.proof import Dimensions, prove_inputs, prove_output
from trainer.export.storage import reserve
from trainer.export.subject import Subject


def write_pt2(path: Path, subject: Subject) -> dict[str, Any]:
    """Writes the subject's program.

    Returns:
        `inputs`, their names: the program takes them by keyword.
    """
    program = subject.program
    reserve(path, subject.model)
    with silence():
        torch.export.save(program, path)
    return {"inputs": list(subject.traced)}


def load_pt2(path: Path, subject: Subject) -> tuple[Forward, dict[str, Any]]:
    """The program, loaded afresh; its declared dimensions are those of the task.

    Raises:
        ProofError: An input is another one, or a dimension is frozen.
    """
    with silence():
        program = torch.export.load(path)
        module: Any = program.module()
    dimensions = _dimensions(program)
    output = dimensions.pop("")
    prove_inputs(path.name, dimensions, subject.task.axes(), subject.task.axis_limits())
    prove_output(path.name, output, subject.cases)

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        result: Tensor = module(**inputs)
        return result

    return forward, {}


def _dimensions(program: ExportedProgram) -> Dimensions:
    """The shape of each input, and of the output under the name ""; a string is a symbolic size."""
    names = {spec.arg.name: spec.arg.name for spec in program.graph_signature.input_specs}
    nodes = {node.name: node for node in program.graph.nodes}
    found = {names[name]: nodes[name] for name in program.graph_signature.user_inputs if isinstance(name, str)}
    (output,) = program.graph_signature.user_outputs
    found[""] = nodes[str(output)]
    return {
        name: [size if isinstance(size, int) else str(size) for size in node.meta["val"].shape]
        for name, node in found.items()
    }
