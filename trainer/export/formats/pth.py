"""The weights as a file of `torch.save`: only tensors, which `torch.load(..., weights_only=True)` reads."""

from pathlib import Path

import torch
from torch import Tensor

from trainer.export.cases import Forward, forward_of
from trainer.export.folder import reserve
from trainer.export.model import ExportModel, in_float16, scrambled
from trainer.layout import Document
from trainer.model.weights import fit_weights
from trainer.model.weights_file import load_weights_file


def write_pth(path: Path, model: ExportModel, *, half: bool, legacy: bool) -> Document:
    """Write a state dict.

    Args:
        path: The file.
        model: The model.
        half: Store floating-point weights in float16.
        legacy: Use the format before torch 1.6, which is no zip archive.

    Returns:
        `tensors`, the number of tensors.
    """
    module = in_float16(model.module) if half else model.module
    tensors = {name: tensor for name, tensor in module.state_dict().items() if isinstance(tensor, Tensor)}
    reserve(path, module)
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    return {"tensors": len(tensors)}


def load_pth(path: Path, model: ExportModel) -> tuple[Forward, Document]:
    """Load the file as `model.weights` does, into a copy of the model whose own weights are scrambled."""
    module = scrambled(model.module)
    fit_weights(module, load_weights_file(str(path)), [], [])
    return forward_of(module), {}
