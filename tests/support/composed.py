"""Composes each choice of options of `conf/` once in a run of the tests, as Hydra takes longer than a check."""

import os
import pickle
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from omegaconf import DictConfig, read_write

from trainer.config import compose
from trainer.config.groups import own_folder

_compose_with_hydra = compose.compose_with_hydra
_composed: dict[tuple[str, ...], bytes] = {}
_shared: list[Path] = []


def share(folder: Path) -> None:
    """Share what is composed with the other processes of the tests that name the same folder."""
    folder.mkdir(exist_ok=True)
    _shared[:] = [folder]


def _compose_once(folder: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    if folder != own_folder() or any("hydra" in override for override in overrides):
        return _compose_with_hydra(folder, name, overrides)
    if (key := (name, *overrides)) not in _composed:
        _composed[key] = _composed_bytes(key)
    config: DictConfig = pickle.loads(_composed[key])
    with read_write(config.hydra):
        config.hydra.runtime.cwd = os.getcwd()
    return config


def _composed_bytes(key: tuple[str, ...]) -> bytes:
    files = [folder / sha256(repr(key).encode()).hexdigest() for folder in _shared]
    for file in files:
        if file.exists():
            return file.read_bytes()
    content = pickle.dumps(_compose_with_hydra(own_folder(), key[0], key[1:]))
    for file in files:
        (written := file.with_suffix(f".{os.getpid()}")).write_bytes(content)
        written.rename(file)
    return content


compose.compose_with_hydra = _compose_once
