"""Read weights from files of any origin: named tensors, never code."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from trainer.errors import ConfigError, format_error
from trainer.files.untrusted import JSON_ERRORS, open_input
from trainer.layout import CHECKPOINTS, expand_home
from trainer.shapes import read_bytes

_KEY: Final = "weights"
_IN_FOLDERS: Final = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model/model.safetensors",
)
_INDEX: Final = ".index.json"
_LEGACY_MAGIC: Final = b"l\xfc\x9cF\xf9 j\xa8P\x19"
_LFS_POINTER: Final = b"version https://git-lfs"
_WRAPPERS: Final = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights")
"""Keys under which training scripts usually save the weights, the most likely first."""

_NOT_MODEL: Final = re.compile(r"optim|sched|scaler|rng", re.IGNORECASE)
_ADDED_PREFIXES: Final = ("module.", "_orig_mod.")
"""Prefixes that DataParallel and torch.compile add to the names of the wrapped model."""


def load_weights_file(path: str) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    Other content that a training script saved is ignored: the weights are the only mapping of tensors, at the top level
    or under a key such as `state_dict` or `model`. A prefix that a wrapper added to all names (`module.`) is removed.

    Args:
        path: A safetensors file, a `torch.save` file (`.pth`, `.pt`, `.bin`) in the zip or the legacy format, an index
            of several such files, or a folder of a transformers model, of a checkpoint, or of a run with `model/`.

    Raises:
        ConfigError: The file does not exist, is truncated, is no weights file, or contains code.
    """
    place = Path(expand_home(path))
    if place.is_dir():
        place = _find_in_folder(place)
    elif not place.exists():
        raise _error("no such file", "Give a weights file, or the folder of a model or of a run", path)
    tensors = _read_index(place) if place.name.endswith(_INDEX) else _read_file(place)
    return _without_wrapper_prefix(tensors)


def _find_in_folder(folder: Path) -> Path:
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    checkpoints = sorted((folder / CHECKPOINTS).glob("step-*"))
    if checkpoints:
        raise _error("is a run without final weights", f"Use a checkpoint: {checkpoints[-1]}", str(folder))
    raise _error("is a folder without weights", f"It must contain one of {', '.join(_IN_FOLDERS)}", str(folder))


def _read_index(place: Path) -> dict[str, Tensor]:
    try:
        names = sorted(set(json.loads(read_bytes(place))["weight_map"].values()))
    except OSError as error:
        raise _error(f"cannot be read ({error.strerror})", "", str(place)) from error
    except (*JSON_ERRORS, KeyError, TypeError, AttributeError) as error:
        raise _error("is not an index of weights: it has no weight_map", "", str(place)) from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        file = place.parent / str(name)
        if file.name != name or not file.is_file():
            problem = f"refers to {name!r}, which is not in the same folder"
            raise _error(problem, "Download all files of the model", str(place))
        tensors |= _read_file(file)
    return tensors


def _read_file(place: Path) -> dict[str, Tensor]:
    try:
        with open_input(place) as file:
            head = file.read(64)
    except OSError as error:
        raise _error(f"cannot be read ({error.strerror})", "", str(place)) from error
    if not head:
        raise _error("is an empty file", "", str(place))
    if head.startswith(_LFS_POINTER):
        raise _error("is a Git LFS pointer instead of the weights", "Download them: git lfs pull", str(place))
    if place.suffix == ".safetensors" or head[8:9] == b"{":
        return _read_safetensors(place)
    if head.startswith(b"PK") or _LEGACY_MAGIC in head:
        return _read_torch(place)
    raise _error("is not a weights file", "Supported are files of safetensors and of torch.save", str(place))


def _read_safetensors(place: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(place)
    except SafetensorError as error:
        size = place.stat().st_size
        with place.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        # The format allows headers of at most 100 MB.
        truncated = size < 8 or "not fully covered" in str(error) or size < 8 + header <= 100_000_000
        problem = "is truncated" if truncated else f"is damaged or not a safetensors file ({error})"
        raise _error(problem, "Download it again", str(place)) from error


def _read_torch(place: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                convert = f"torch.save(torch.jit.load({str(place)!r}).state_dict(), 'weights.pth')"
                remedy = f"If you trust it, convert it in Python: {convert}"
                raise _error("is a TorchScript program", remedy, str(place))
    try:
        with warnings.catch_warnings():
            # Warnings about pickle protocols; files that cannot be loaded raise.
            warnings.simplefilter("ignore")
            content = torch.load(place, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _unpickling_error(str(error), place) from error
    except Exception as error:  # a truncated file can fail with any exception
        raise _error("is truncated or damaged", "Download it again", str(place)) from error
    return _find_weights(content, place)


def _unpickling_error(reason: str, place: Path) -> ConfigError:
    # If the file is truncated inside a name, the name ends with a dot.
    code = re.search(r"GLOBAL ([\w.]*\w)(?![\w.])", reason)
    if code is not None:
        problem = f"contains code ({code[1]}) in addition to tensors, which is never run"
    elif "Unsupported operand" in reason:
        problem = "has a pickle protocol that cannot be read without running code"
    else:
        return _error("is truncated or damaged", "Download it again", str(place))
    convert = f"c = torch.load({str(place)!r}, weights_only=False), which runs its code"
    remedy = f"If you trust it, convert it in Python: {convert}, then torch.save(<its weights>, 'weights.pth')"
    return _error(problem, remedy, str(place))


def _find_weights(content: object, place: Path) -> dict[str, Tensor]:
    candidates = dict(_tensor_mappings(content, ""))
    if not candidates:
        raise _error("contains no named tensors", "Save model.state_dict()", str(place))
    for name in ("", *_WRAPPERS):
        paths = [path for path in candidates if path.rpartition(".")[2] == name]
        if len(paths) == 1:
            return candidates[paths[0]]
    if len(candidates) > 1:
        problem = f"contains several sets of weights ({', '.join(candidates)})"
        raise _error(problem, "Save only the one to load", str(place))
    return next(iter(candidates.values()))


def _tensor_mappings(content: object, path: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the innermost mappings of tensors and their paths, without optimizer state and the like."""
    if not isinstance(content, Mapping):
        return
    inner = [
        mapping
        for key, value in content.items()
        if isinstance(key, str) and not _NOT_MODEL.search(key)
        for mapping in _tensor_mappings(value, f"{path}.{key}" if path else key)
    ]
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if inner:
        yield from inner
    elif tensors:
        yield path, {key: value.detach() for key, value in tensors.items()}


def _without_wrapper_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _ADDED_PREFIXES * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _error(problem: str, remedy: str, path: str) -> ConfigError:
    return ConfigError(format_error(_KEY, problem, remedy, value=path))
