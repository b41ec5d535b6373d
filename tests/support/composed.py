"""Composes each choice of options of `conf/` once in a run of the tests, as Hydra takes longer than a check.

With a `conf` in the working directory, a choice is composed again once one of its files has changed. Each file is read,
and each override is parsed, once in a process. Started programs run Hydra as it is.
"""

import os
import pickle
import re
from collections.abc import Iterator, Sequence
from copy import copy
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple, TextIO
from unittest.mock import patch

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins import file_config_source
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf, read_write

from trainer.config import compose
from trainer.config.groups import own_folder

_compose_with_hydra = compose.compose_with_hydra
_load_config = ConfigRepository.load_config
_parse_override = OverridesParser.parse_override
_WORKING_FOLDER = re.compile(r"hydra\.searchpath=\['file://(/[^']*/conf)'\]")


class _Key(NamedTuple):
    name: str
    overrides: tuple[str, ...]
    state: tuple[tuple[str, int, int], ...]
    """The files of the working directory's `conf`."""


_composed: dict[_Key, bytes] = {}
_loaded: dict[str, bytes] = {}
_read: dict[tuple[object, ...], bytes] = {}
_shared: list[Path] = []


def share(folder: Path) -> None:
    """Share what is composed with the other processes of the tests that name the same folder."""
    folder.mkdir(exist_ok=True)
    _shared[:] = [folder]


def _compose_once(folder: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    others = [override for override in overrides if "hydra" in override]
    found = [_WORKING_FOLDER.fullmatch(override) for override in others]
    if folder != own_folder() or not all(found):
        return _compose_with_hydra(folder, name, overrides)
    key = _Key(name, tuple(overrides), tuple(state for match in found if match for state in _state_of(match[1])))
    if key not in _composed:
        _composed[key] = _composed_bytes(key)
    config: DictConfig = pickle.loads(_composed[key])
    with read_write(config.hydra):
        config.hydra.runtime.cwd = os.getcwd()
    return config


def _state_of(folder: str) -> Iterator[tuple[str, int, int]]:
    """Yield the path, the time and the size of each file of a working directory's `conf`."""
    for path in sorted(Path(folder).rglob("*")):
        status = path.lstat()
        yield str(path), status.st_mtime_ns, status.st_size


def _composed_bytes(key: _Key) -> bytes:
    files = [folder / sha256(repr(key).encode()).hexdigest() for folder in _shared]
    for file in files:
        if file.exists():
            return file.read_bytes()
    with patch.object(ConfigRepository, "load_config", _load_config if key.state else _load_once):
        content = pickle.dumps(_compose_with_hydra(own_folder(), key.name, key.overrides))
    for file in files:
        (written := file.with_suffix(f".{os.getpid()}")).write_bytes(content)
        written.rename(file)
    return content


def _load_once(self: ConfigRepository, config_path: str) -> object:
    """Return a config of Hydra's search path, which is the same for each command that is composed here."""
    if config_path not in _loaded:
        if (config := _load_config(self, config_path)) is None:
            return None
        _loaded[config_path] = pickle.dumps(config)
    return pickle.loads(_loaded[config_path])


def _read_once(file: TextIO) -> object:
    """Return the config in a file of Hydra's search path, again if it has changed."""
    status = os.fstat(file.fileno())
    key = (file.name, status.st_ino, status.st_mtime_ns, status.st_size)
    if key not in _read:
        _read[key] = pickle.dumps(OmegaConf.load(file))
    return pickle.loads(_read[key])


def _parse_once(self: OverridesParser, text: str) -> Override:
    return _parse_override(self, text) if self.config_loader is not None else copy(_parsed(text))


@lru_cache(maxsize=4096)
def _parsed(text: str) -> Override:
    return _parse_override(OverridesParser.create(), text)


compose.compose_with_hydra = _compose_once
file_config_source.OmegaConf = SimpleNamespace(load=_read_once)  # type: ignore[attr-defined]
OverridesParser.parse_override = _parse_once
