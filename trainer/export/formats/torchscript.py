"""The model as TorchScript, by tracing. torch has deprecated TorchScript; its warnings end here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.export.cases import Forward
from trainer.export.model import ExportModel, silence
from trainer.files.atomic_io import library_file
from trainer.layout import Document


class Positional(nn.Module):
    """A model with its inputs in a fixed order: traced modules take no keyword arguments."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the model's output."""
        output: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)))
        return output


def write_torchscript(path: Path, model: ExportModel) -> Document:
    """Trace the model.

    Returns:
        `inputs`, their order: a traced module takes them without names.
    """
    save_trace(model.module, model.traced, path)
    return {"inputs": list(model.traced)}


def load_torchscript(path: Path, model: ExportModel) -> tuple[Forward, Document]:
    """Load the module. A traced module declares no dimensions."""
    return load_trace(path, tuple(model.traced)), {}


def save_trace(model: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Trace a model at `inputs` and save the module, which takes them in this order, without names."""
    # A new module is in training mode, and the trace would record that mode.
    wrapper = Positional(model, tuple(inputs)).eval()
    # torch's own writer to a path aborts the process on a full disk.
    with silence(), library_file(path) as file:
        # check_trace would compare one shape in this process; the proof compares many shapes with the loaded file.
        trace: Any = torch.jit.trace
        torch.jit.save(trace(wrapper, tuple(inputs.values()), check_trace=False), file)


def load_trace(path: Path, names: tuple[str, ...]) -> Forward:
    """Load a traced module that takes its inputs in the order of `names`."""
    with silence():
        load: Any = torch.jit.load
        module = load(str(path), map_location="cpu")

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = module(*(inputs[name] for name in names))
        return output

    return forward
