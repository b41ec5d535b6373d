"""The weights as files: a folder of safetensors, or a file of `torch.save`.

A wrapper of a library's model is written in that library's layout (see `trainer.model.pretrained_folder`). The folder
of any other model contains `model.safetensors`, `config.json` and the task's files; `model.weights=FOLDER` reads it.
Weights are proved by loading them into a copy of the model whose own weights are scrambled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from trainer.export.cases import Forward, forward_of, traced_inputs
from trainer.export.model import ExportModel, in_float16, scrambled, silence
from trainer.files.atomic_io import library_file
from trainer.layout import Document
from trainer.model import pretrained_folder
from trainer.model.pretrained_folder import LibraryModel
from trainer.model.weights import fit_weights
from trainer.model.weights_file import load_weights_file
from trainer.protocols import Target, Task

_EMBEDDINGS: Final[tuple[Target, ...]] = ("views", "similarity")
"""The targets of tasks whose outputs are embeddings."""


def write_safetensors(path: Path, model: ExportModel, *, half: bool) -> Document:
    """Write the folder `path`, with floating-point weights in float16 if `half`.

    Returns:
        `library`, and further keys for the layout of that library.
    """
    module, task = model.module, model.task
    if isinstance(module, LibraryModel):
        return save_library(module, path, task, half=half)
    from safetensors.torch import save_file

    path.mkdir()
    state = (in_float16(module) if half else module).state_dict()
    save_file(_without_tied(state), path / "model.safetensors", metadata={"format": "pt"})
    (path / "config.json").write_text(json.dumps(model.architecture, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for name, text in task.artifact_files().items():
        (path / name).write_text(text, "utf-8")
    return {"library": "trainer", "read_by": "model.weights=<this folder>"}


def save_library(model: LibraryModel, folder: Path, task: Task, *, half: bool) -> Document:
    """Write a model in the layout of its own library; see `trainer.model.pretrained_folder.save`."""
    lengths = task.axis_limits().get("sequence") if task.target in _EMBEDDINGS else None
    max_length = None if lengths is None else lengths[1]
    with silence():
        example, files = traced_inputs(task), task.artifact_files()
        return pretrained_folder.save(model, folder, example, files, max_length=max_length, half=half)


def load_safetensors(path: Path, model: ExportModel) -> tuple[Forward, Document]:
    """Load the folder with the library that it is written for."""
    module = scrambled(model.module)
    if isinstance(module, LibraryModel):
        with silence():
            pretrained_folder.load(module, path)
    else:
        fit_weights(module, load_weights_file(str(path)), [], [])
    return forward_of(module), {}


def _without_tied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors, tied ones only under their first name: safetensors has no shared tensors."""
    unique: dict[object, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            identity = (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name
            unique.setdefault(identity, (name, tensor))
    return {name: tensor.contiguous() for name, tensor in unique.values()}


def write_pth(path: Path, model: ExportModel, *, half: bool, legacy: bool) -> Document:
    """Write a state dict that contains only tensors, so `torch.load(..., weights_only=True)` reads it.

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
    with library_file(path) as file:
        torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
    return {"tensors": len(tensors)}


def load_pth(path: Path, model: ExportModel) -> tuple[Forward, Document]:
    """Load the file as `model.weights` does, into a copy of the model whose own weights are scrambled."""
    module = scrambled(model.module)
    fit_weights(module, load_weights_file(str(path)), [], [])
    return forward_of(module), {}
