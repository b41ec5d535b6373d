"""The model as TorchScript, by tracing. It stands alone: torch is giving TorchScript up, its warnings end here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.export.cases import Forward
from trainer.export.isolation import silence
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
    """Traces the model; the module it writes takes the inputs in a fixed order, without names.

    Returns:
        `inputs`, that order.
    """
    names = tuple(subject.traced)
    # A new module is in training mode, and the trace would write that mode down.
    wrapper = Positional(subject.model, names).eval()
    with silence():
        # What check_trace looks at, one shape in this process, the proof does at many shapes of the loaded file.
        trace: Any = torch.jit.trace
        trace(wrapper, tuple(subject.traced.values()), check_trace=False).save(str(path))
    return {"inputs": list(names)}


def load_torchscript(path: Path, subject: Subject) -> tuple[Forward, dict[str, Any]]:
    """The module, loaded afresh; a traced graph declares no dimensions."""
    names = tuple(subject.traced)
    with silence():
        load: Any = torch.jit.load
        module = load(str(path), map_location="cpu")

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output: Tensor = module(*(inputs[name] for name in names))
        return output

    return forward, {}
