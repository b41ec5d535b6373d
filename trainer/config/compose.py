"""A configuration out of YAML files and overrides, by Hydra; and the same as plain values."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from trainer.config import jobs, schema
from trainer.errors import ConfigError, format_error


def register_defaults() -> None:
    """Puts the defaults of the keys we own where the YAML files find them, as `<verb>_defaults`."""
    for verb, kind in jobs.JOBS.items():
        ConfigStore.instance().store(name=f"{verb}_defaults", node=schema.defaults(kind), provider="trainer")


def compose(folder: Path, name: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """The configuration `name` of `folder`, and the option of each group in it.

    Interpolations that refer to Hydra's own configuration find it afterwards.

    Raises:
        ConfigError: It cannot be composed.
    """
    try:
        with initialize_config_dir(str(folder), version_base="1.3", job_name="trainer"):
            config = hydra_compose(name, overrides=list(overrides), return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        raise ConfigError(one_line(error)) from error
    with open_dict(config.hydra):
        # What only a started job has, so that values that refer to it can be checked before.
        config.hydra.job.num, config.hydra.job.id = 0, "0"
        config.hydra.runtime.output_dir = os.getcwd()
    HydraConfig.instance().set_config(config)
    choices = {str(key): value for key, value in config.hydra.runtime.choices.items()}
    job = copy.deepcopy(config)
    with open_dict(job):
        del job["hydra"]
    return job, choices


def one_line(error: BaseException) -> str:
    """What Hydra or OmegaConf says, with the cause that it hides."""
    said = str(error).strip() or type(error).__name__
    return f"{said} {str(error.__cause__).strip()}" if error.__cause__ else said


def apply(config: DictConfig, overrides: Sequence[Override]) -> list[str]:
    """Changes `config` in place as Hydra does; returns what cannot be done."""
    faults = []
    for override in overrides:
        try:
            if override.is_delete():
                parent, _, name = override.key_or_group.rpartition(".")
                with open_dict(config):
                    del (OmegaConf.select(config, parent) if parent else config)[name]
            else:
                set_value(config, override.key_or_group, override.value())
        except OmegaConfBaseException as error:
            faults.append(format_error(override.key_or_group, "cannot be set", str(error).splitlines()[0].rstrip(".")))
    return faults


def set_value(config: DictConfig, path: str, value: Any) -> None:
    """Sets the value at a dotted path in place; a mapping is merged."""
    OmegaConf.update(config, path, value, merge=True, force_add=True)


def plain(config: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """A configuration as mappings, lists and scalars, and a message for each interpolation without a value.

    With such a message the interpolations are left as they are written; so is `???`.
    """
    faults = list(filter(None, (_unresolved(config, path) for path in _interpolations(config))))
    return as_written(config) if faults else _container(config, resolve=True), faults


def as_written(config: DictConfig) -> dict[str, Any]:
    """A configuration as mappings, lists and scalars, its interpolations as they are written."""
    return _container(config, resolve=False)


def _container(config: DictConfig, *, resolve: bool) -> dict[str, Any]:
    container = OmegaConf.to_container(config, resolve=resolve)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _interpolations(config: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    keys = range(len(config)) if isinstance(config, ListConfig) else list(config)
    for key in keys:
        if OmegaConf.is_interpolation(config, key):
            yield f"{prefix}{key}"
        elif not OmegaConf.is_missing(config, key) and isinstance(config[key], DictConfig | ListConfig):
            yield from _interpolations(config[key], f"{prefix}{key}.")


def _unresolved(config: DictConfig, path: str) -> str:
    try:
        OmegaConf.select(config, path, throw_on_missing=True)
    except OmegaConfBaseException as error:
        written: Any = as_written(config)
        for name in path.split("."):
            written = written[int(name) if isinstance(written, list) else name]
        return format_error(
            path, "the interpolation has no value", str(error).splitlines()[0].rstrip("."), value=written
        )
    return ""
