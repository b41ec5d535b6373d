"""The configuration that a run and its checkpoints carry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config import jobs, schema
from trainer.config.catalogue import Catalogue, own_folder
from trainer.config.check import checked_job
from trainer.config.compose import as_written, set_value
from trainer.config.keys import Keys, is_known
from trainer.config.parts import completed
from trainer.config.paths import located
from trainer.config.trust import trusted
from trainer.errors import CheckpointError, format_error, raise_if_any

FILE = "config.yaml"
_GROUPS = schema.groups(jobs.TrainJob)


def config_text(config: Mapping[str, Any]) -> str:
    """A configuration as the YAML that is stored."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def stored_config(text: str, name: str = FILE) -> dict[str, Any]:
    """The configuration of a stored text; it is data, nothing in it is run. `name` is its file's, for messages.

    Raises:
        CheckpointError: It is not a configuration.
    """
    try:
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise CheckpointError(format_error(name, f"cannot be read ({str(error).splitlines()[0]})")) from error
    if not isinstance(config, DictConfig) or "model" not in config:
        raise CheckpointError(format_error(name, "is not the configuration of a run"))
    return _completed(as_written(config))


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """With the keys that there are since it was stored: their defaults stand for what was done before them."""
    catalogue = Catalogue((own_folder(),))
    defaults = schema.defaults(jobs.TrainJob)
    whole = dict(config)
    for name in schema.keys(jobs.TrainJob):
        default, value = defaults.get(name), whole.setdefault(name, None if name in _GROUPS else defaults.get(name))
        if isinstance(value, dict) and isinstance(default, dict):
            whole[name] = value | {key: default[key] for key in default if key not in value}
        if isinstance(value, dict) and name in _GROUPS:
            whole[name] = completed(name, whole[name], catalogue)
    return whole


def load_stored_config(path: str | Path, key: str = "resume") -> dict[str, Any]:
    """The configuration of a run folder or of a checkpoint folder; `key` is what named it, for messages.

    Raises:
        CheckpointError: There is none.
    """
    folder = Path(path)
    # A checkpoint carries it too: a run folder that has lost its own can still go on.
    own = folder.parent if folder.name == "export" else folder
    files = [own / FILE, *sorted(own.glob(f"checkpoints/step-*/{FILE}"), reverse=True)]
    there = [file for file in files if file.is_file()]
    if not there:
        problem = "holds neither config.yaml nor a checkpoint" if folder.is_dir() else "there is no such folder"
        remedy = "Give a run folder or one of its checkpoints"
        if (folder / "predict.py").is_file():
            problem = "holds artifacts without the run they come from"
            remedy = f"Run their own script: python {folder / 'predict.py'}"
        raise CheckpointError(format_error(key, problem, remedy, value=str(path)))
    for file in there[:-1]:
        with suppress(CheckpointError, UnicodeDecodeError):
            return stored_config(file.read_text(encoding="utf-8"), str(file))
    return stored_config(there[-1].read_text(encoding="utf-8"), str(there[-1]))


def exported_config(path: str | Path) -> dict[str, Any] | None:
    """What a folder of artifacts says of the config that answering rows needs; None where it is none, or says nothing.

    It has the keys `task`, `data` and `loader` of a run's configuration.
    """
    try:
        manifest = json.loads((Path(path) / "manifest.json").read_text(encoding="utf-8"))
        return dict(manifest["provenance"]["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def with_overrides(config: Mapping[str, Any], pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A stored configuration with changes by full key.

    Raises:
        ConfigError: It has no such key.
    """
    keys = keys_of(config)
    raise_if_any(*(keys.unknown(path, value) for path, value in pairs if not is_known(config, path)))
    changed = OmegaConf.create(dict(config))
    for path, value in pairs:
        set_value(changed, path, value)
    return as_written(changed)


def keys_of(config: Mapping[str, Any]) -> Keys:
    """What may be given for a stored configuration."""
    return Keys(jobs.TrainJob, Catalogue((own_folder(),)), config)


def job_from_config(config: Mapping[str, Any]) -> jobs.TrainJob:
    """The typed job of a stored configuration.

    Raises:
        ConfigError: All that is wrong with it.
    """
    job = checked_job(config, keys_of(config))
    assert isinstance(job, jobs.TrainJob)
    return job


def job_from_text(text: str, trust: Sequence[str] | None, overrides: Sequence[tuple[str, Any]] = ()) -> jobs.TrainJob:
    """The typed job of a stored text, with changes by full key.

    Args:
        text: The stored configuration.
        trust: Packages the user trusts beside our own; None where this process wrote the text itself.
        overrides: Full keys and values that replace the stored ones.

    Raises:
        CheckpointError: It names code that is not trusted.
        ConfigError: It has no such key, or it is wrong.
    """
    config = stored_config(text)
    if trust is not None and (faults := trusted(config, trust)):
        raise CheckpointError(*faults)
    return job_from_config(with_overrides(located(config), overrides))
