"""Weights out of a file that somebody else may have made: named tensors, and never code."""

from __future__ import annotations

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from trainer.errors import ConfigError, format_error

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
"""Under these a training script usually saves the weights, the likeliest first."""

_NOT_MODEL: Final = re.compile(r"optim|sched|scaler|rng", re.IGNORECASE)
_ADDED_PREFIXES: Final = ("module.", "_orig_mod.")
"""What DataParallel and torch.compile put before the names of the model that they wrap."""


def load_weights_file(path: str) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU.

    Of what a training script saved besides, nothing is taken: the weights are the one mapping of tensors, alone or
    under a key such as `state_dict` or `model`. Prefixes of all names that a wrapper added (`module.`) are gone.

    Args:
        path: A safetensors file, a file of `torch.save` (`.pth`, `.pt`, `.bin`) in its zip or its older form, an index
            of several such files, or a folder: of a model of transformers, of a checkpoint, or of a run, whose `model/`
            is taken.

    Raises:
        ConfigError: There is no such file, it is truncated, no weights, or holds code in place of tensors.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        place = _in_folder(place)
    elif not place.exists():
        raise _fault("there is no such file", "Give a file of weights, or the folder of a model or a run", path)
    tensors = _of_index(place) if place.name.endswith(_INDEX) else _of_file(place)
    return _unwrapped(tensors)


def _in_folder(folder: Path) -> Path:
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return folder / name
    checkpoints = sorted((folder / "checkpoints").glob("step-*"))
    if checkpoints:
        raise _fault("is a run that has no final weights", f"It has a checkpoint: {checkpoints[-1]}", str(folder))
    raise _fault("is a folder without weights", f"Looked for {', '.join(_IN_FOLDERS)}", str(folder))


def _of_index(place: Path) -> dict[str, Tensor]:
    try:
        names = sorted(set(json.loads(place.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _fault("is no index of weights: it has no weight_map", "", str(place)) from error
    tensors: dict[str, Tensor] = {}
    for name in names:
        file = place.parent / str(name)
        if file.name != name or not file.is_file():
            raise _fault(f"names {name!r}, which is not beside it", "Fetch all files of the model", str(place))
        tensors |= _of_file(file)
    return tensors


def _of_file(place: Path) -> dict[str, Tensor]:
    try:
        with place.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise _fault(f"cannot be read ({error.strerror})", "", str(place)) from error
    if not head:
        raise _fault("is an empty file", "", str(place))
    if head.startswith(_LFS_POINTER):
        raise _fault("is a pointer of Git LFS in place of the weights", "Fetch them: git lfs pull", str(place))
    if place.suffix == ".safetensors" or head[8:9] == b"{":
        return _of_safetensors(place)
    if head.startswith(b"PK") or _LEGACY_MAGIC in head:
        return _of_torch(place)
    raise _fault("is no file of weights", "Known are those of safetensors and of torch.save", str(place))


def _of_safetensors(place: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(place)
    except SafetensorError as error:
        size = place.stat().st_size
        with place.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")
        # A header of 100 MB is the most that the format allows.
        cut = size < 8 or "not fully covered" in str(error) or size < 8 + header <= 100_000_000
        problem = "is truncated" if cut else f"is damaged, or no safetensors file ({error})"
        raise _fault(problem, "Fetch it again", str(place)) from error


def _of_torch(place: Path) -> dict[str, Tensor]:
    if zipfile.is_zipfile(place):
        with zipfile.ZipFile(place) as archive:
            if any(name.endswith("/constants.pkl") for name in archive.namelist()):
                convert = f"torch.save(torch.jit.load({str(place)!r}).state_dict(), 'weights.pth')"
                raise _fault(
                    "is a TorchScript program", f"If you trust it, convert it in Python: {convert}", str(place)
                )
    try:
        with warnings.catch_warnings():
            # About protocols of pickle; what cannot be loaded is raised.
            warnings.simplefilter("ignore")
            content = torch.load(place, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(str(error), place) from error
    except Exception as error:  # what is cut anywhere fails anyhow
        raise _fault("is truncated or damaged", "Fetch it again", str(place)) from error
    return _weights_in(content, place)


def _refused(reason: str, place: Path) -> ConfigError:
    # Cut within a name, it ends with a dot.
    code = re.search(r"GLOBAL ([\w.]*\w)(?![\w.])", reason)
    if code is not None:
        problem = f"holds code ({code[1]}) beside tensors, which is not run here"
    elif "Unsupported operand" in reason:
        problem = "is of a protocol of pickle that is not read without running code"
    else:
        return _fault("is truncated or damaged", "Fetch it again", str(place))
    convert = f"c = torch.load({str(place)!r}, weights_only=False), which runs its code"
    remedy = f"If you trust it, convert it in Python: {convert}, then torch.save(<its weights>, 'weights.pth')"
    return _fault(problem, remedy, str(place))


def _weights_in(content: Any, place: Path) -> dict[str, Tensor]:
    found = dict(_mappings(content, ""))
    if not found:
        raise _fault("holds no tensors by name", "Save model.state_dict()", str(place))
    for name in ("", *_WRAPPERS):
        at = [path for path in found if path.rpartition(".")[2] == name]
        if len(at) == 1:
            return found[at[0]]
    if len(found) > 1:
        remedy = "Save the one alone that is to be loaded"
        raise _fault(f"holds several sets of weights ({', '.join(found)})", remedy, str(place))
    return next(iter(found.values()))


def _mappings(content: Any, path: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The innermost mappings of tensors with where they are, those of an optimizer and its like left out."""
    if not isinstance(content, Mapping):
        return
    inner = [
        found
        for key, value in content.items()
        if isinstance(key, str) and not _NOT_MODEL.search(key)
        for found in _mappings(value, f"{path}.{key}" if path else key)
    ]
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if inner:
        yield from inner
    elif tensors:
        yield path, {key: value.detach() for key, value in tensors.items()}


def _unwrapped(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _ADDED_PREFIXES * 2:
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _fault(problem: str, remedy: str, path: str) -> ConfigError:
    return ConfigError(format_error(_KEY, problem, remedy, value=path))
