"""The weights of a model alone: files of torch, and folders in the layout of the model's own library.

A file of weights is no program: each is proved by reading it into a copy of the model whose weights are scrambled. A
model around one of a library is written in that library's layout (see `trainer.model.pretrained_folder`); the folder of
any other holds `model.safetensors`, `config.json` and the task's files, which `model.weights=FOLDER` reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.export.cases import Forward, forward_of, traced_inputs
from trainer.export.isolation import silence
from trainer.export.storage import reserve
from trainer.export.subject import Subject, copy_with, scrambled
from trainer.model import pretrained_folder
from trainer.model.pretrained_folder import LibraryModel
from trainer.model.weights import fit_weights
from trainer.model.weights_file import load_weights_file
from trainer.protocols import Target, Task

_EMBEDDINGS: tuple[Target, ...] = ("views", "similarity")
"""The targets of tasks whose outputs are embeddings."""


def write_pth(path: Path, subject: Subject, *, half: bool, legacy: bool) -> dict[str, Any]:
    """Writes a state dict by `torch.save`: tensors alone, which `torch.load(..., weights_only=True)` reads.

    Args:
        path: The file.
        subject: The model.
        half: Floating weights in float16.
        legacy: As torch wrote it before 1.6, without a zip archive.

    Returns:
        `tensors`, their number.
    """
    model = _halved(subject.model) if half else subject.model
    state = model.state_dict()
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
    reserve(path, model)
    torch.save(tensors, path, _use_new_zipfile_serialization=not legacy)
    return {"tensors": len(tensors)}


def load_pth(path: Path, subject: Subject) -> tuple[Forward, dict[str, Any]]:
    """A model with the weights of the file, as `model.weights=` reads them."""
    model = scrambled(subject.model)
    fit_weights(model, load_weights_file(str(path)), [], [])
    return forward_of(model), {}


def write_safetensors(path: Path, subject: Subject, *, half: bool) -> dict[str, Any]:
    """Writes a folder: that of the model's own library, where it has one.

    Returns:
        `library` and what that says of its folder.
    """
    model, task = subject.model, subject.task
    if isinstance(model, LibraryModel):
        return save_library(model, path, task, half=half)
    from safetensors.torch import save_file

    path.mkdir()
    save_file(
        _untied((_halved(model) if half else model).state_dict()), path / "model.safetensors", metadata={"format": "pt"}
    )
    (path / "config.json").write_text(json.dumps(subject.architecture, indent=1, ensure_ascii=False) + "\n", "utf-8")
    for name, text in task.artifact_files().items():
        (path / name).write_text(text, "utf-8")
    return {"library": "trainer", "read_by": "model.weights=<this folder>"}


def save_library(model: LibraryModel, folder: Path, task: Task, *, half: bool) -> dict[str, Any]:
    """Writes a model in the layout of its own library; see `trainer.model.pretrained_folder.save`."""
    lengths = task.axis_limits().get("sequence") if task.target in _EMBEDDINGS else None
    max_length = None if lengths is None else lengths[1]
    with silence():
        example, files = traced_inputs(task), task.artifact_files()
        return pretrained_folder.save(model, folder, example, files, max_length=max_length, half=half)


def load_safetensors(path: Path, subject: Subject) -> tuple[Forward, dict[str, Any]]:
    """A model with the weights of the folder, read by the library that it is for."""
    model = scrambled(subject.model)
    if isinstance(model, LibraryModel):
        with silence():
            pretrained_folder.load(model, path)
    else:
        fit_weights(model, load_weights_file(str(path)), [], [])
    return forward_of(model), {}


def _halved(model: nn.Module) -> nn.Module:
    return copy_with(model, lambda tensor: tensor.half() if tensor.is_floating_point() else tensor)


def _untied(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, a tied one under its first name alone: the format has no shared tensors, and a reader ties again."""
    found: dict[Any, tuple[str, Tensor]] = {}
    for name, tensor in state.items():
        if isinstance(tensor, Tensor):
            found.setdefault(
                (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name, (name, tensor)
            )
    return {name: tensor.contiguous() for name, tensor in found.values()}
