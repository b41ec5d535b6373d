"""The model as a program of torch.export, a `.pt2` file.

torch reads a `.pt2` with pickle, which runs code in the file. Load only files that you trust.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from trainer.export.cases import Forward
from trainer.export.compare import Dimensions, check_inputs, check_output
from trainer.export.model import ExportModel, silence
from trainer.files.atomic_io import library_file
from trainer.layout import Document


def write_pt2(path: Path, model: ExportModel) -> Document:
    """Write the model's program.

    Returns:
        `inputs`, their names: the program takes keyword arguments.
    """
    program = model.program
    with silence(), library_file(path) as file:
        torch.export.save(program, file)
    return {"inputs": list(model.traced)}


def load_pt2(path: Path, model: ExportModel) -> tuple[Forward, Document]:
    """Load the program and check its declared dimensions.

    Raises:
        ProofError: An input is missing or unexpected, or a dimension is frozen.
    """
    with silence():
        program = torch.export.load(path)
        module: Any = program.module()
    inputs, output = _dimensions(program)
    check_inputs(path.name, inputs, model.task.axes(), model.task.axis_limits())
    check_output(path.name, output, model.cases)

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        result: Tensor = module(**inputs)
        return result

    return forward, {}


def _dimensions(program: ExportedProgram) -> tuple[Dimensions, list[int | str | None]]:
    """Return the shape of each input and of the output; a string is a symbolic size."""
    nodes = {node.name: node for node in program.graph.nodes}

    def shape(name: str) -> list[int | str | None]:
        return [size if isinstance(size, int) else str(size) for size in nodes[name].meta["val"].shape]

    names = [name for name in program.graph_signature.user_inputs if isinstance(name, str)]
    (output,) = program.graph_signature.user_outputs
    return {name: shape(name) for name in names}, shape(str(output))
