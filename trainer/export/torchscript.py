"""The model as TorchScript, by tracing. It stands alone: torch is giving TorchScript up, its warnings end here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.export.cases import Forward
from trainer.export.isolation import silence
from trainer.export.storage import reserve
from trainer.export.subject import Subject


class Positional(nn.Module):
    """The model with its inputs in a fixed order: a traced graph has no keywords."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        """The model's output."""
        output: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)))
        return output


def write_torchscript(path: Path, subject: Subject) -> dict[str, Any]:
    """Traces the subject's model.

    Returns:
        `inputs`, their order: a traced module takes them without names.
    """
    save_trace(subject.model, subject.traced, path)
    return {"inputs": list(subject.traced)}


def load_torchscript(path: Path, subject: Subject) -> tuple[Forward, dict[str, Any]]:
    """The module, loaded afresh; a traced graph declares no dimensions."""
    return open_trace(path, tuple(subject.traced)), {}


def save_trace(model: nn.Module, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Traces a model at `inputs`; the module it writes takes them in that order, without names."""
    # A new module is in training mode, and the trace would write that mode down.
    wrapper = Positional(model, tuple(inputs)).eval()
    reserve(path, model)
    with silence():
        # What check_trace looks at, one shape in this process, the proof does at many shapes of the loaded file.
        trace: Any = torch.jit.trace
        trace(wrapper, tuple(inputs.values()), check_trace=False).save(str(path))


def open_trace(path: Path, names: tuple[str, ...]) -> Forward:
    """The module, loaded afresh; `names` in the order it was traced with."""
    with silence():
        load: Any = torch.jit.load
        module = load(str(path), map_location="cpu")

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = module(*(inputs[name] for name in names))
        return output

    return forward
