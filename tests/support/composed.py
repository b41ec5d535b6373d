"""Composes each choice of options of `conf/` once in a process, as Hydra takes longer than the rest of a check."""

import os
import pickle
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, read_write

from trainer.config import compose
from trainer.config.groups import own_folder

_compose_with_hydra = compose.compose_with_hydra
_composed: dict[tuple[str, ...], bytes] = {}


def _compose_once(folder: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    if folder != own_folder() or any("hydra" in override for override in overrides):
        return _compose_with_hydra(folder, name, overrides)
    if (key := (name, *overrides)) not in _composed:
        _composed[key] = pickle.dumps(_compose_with_hydra(folder, name, overrides))
    config: DictConfig = pickle.loads(_composed[key])
    with read_write(config.hydra):
        config.hydra.runtime.cwd = os.getcwd()
    return config


compose.compose_with_hydra = _compose_once
