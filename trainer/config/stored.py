"""The config in a run and its checkpoints: read it, complete it, and restrict the code that it may name.

A checkpoint is data and may come from anyone, so its config may name only known code.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config import jobs, schema, signatures
from trainer.config.compose import set_value, unresolved
from trainer.config.groups import Groups, own_folder
from trainer.config.paths import locate_paths
from trainer.config.unknown_keys import KnownKeys, is_known
from trainer.config.validate import complete_part, typed_job
from trainer.errors import CheckpointError, format_error, raise_if_any
from trainer.layout import CONFIG

LIBRARIES = ("torch.optim", "torch.nn", "transformers", "torchmetrics")
"""Packages whose classes a stored `_target_` may name, besides the parts of this project."""

_GROUPS = schema.groups(jobs.TrainJob)


def config_text(config: Mapping[str, Any]) -> str:
    """Return a config as the YAML that is stored."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def parse_stored_config(text: str, name: str = CONFIG) -> dict[str, Any]:
    """Return the config in a stored text; nothing in it is run. `name` is the file's name for messages.

    Raises:
        CheckpointError: The text is not a config.
    """
    try:
        config = OmegaConf.create(text)
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise CheckpointError(format_error(name, f"cannot be read ({str(error).splitlines()[0]})")) from error
    if not isinstance(config, DictConfig) or "model" not in config:
        raise CheckpointError(format_error(name, "does not contain the config of a run"))
    return _complete(unresolved(config))


def _complete(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with keys that are newer than it; their defaults keep the behavior that it was stored with."""
    groups = Groups((own_folder(),))
    defaults = schema.defaults(jobs.TrainJob)
    whole = dict(config)
    for name in schema.keys(jobs.TrainJob):
        default, value = defaults.get(name), whole.setdefault(name, None if name in _GROUPS else defaults.get(name))
        if isinstance(value, dict) and isinstance(default, dict):
            whole[name] = value | {key: default[key] for key in default if key not in value}
        if isinstance(value, dict) and name in _GROUPS:
            whole[name] = complete_part(name, whole[name], groups)
    return whole


def load_stored_config(path: str | Path, key: str = "resume") -> dict[str, Any]:
    """Return the config of a run folder or a checkpoint folder; `key` is the key that names it, for messages.

    Raises:
        CheckpointError: The folder has no config.
    """
    folder = Path(path)
    # Every checkpoint has a copy, so a run folder that has lost its own config can still be used.
    own = folder.parent if folder.name == "export" else folder
    files = [own / CONFIG, *sorted(own.glob(f"checkpoints/step-*/{CONFIG}"), reverse=True)]
    existing = [file for file in files if file.is_file()]
    if not existing:
        problem = "contains neither config.yaml nor a checkpoint" if folder.is_dir() else "no such folder"
        remedy = "Name a run folder or one of its checkpoints"
        if (folder / "predict.py").is_file():
            problem = "contains artifacts without the run that made them"
            remedy = f"Run the folder's own script: python {folder / 'predict.py'}"
        raise CheckpointError(format_error(key, problem, remedy, value=str(path)))
    for file in existing[:-1]:
        with suppress(CheckpointError, UnicodeDecodeError):
            return parse_stored_config(file.read_text(encoding="utf-8"), str(file))
    return parse_stored_config(existing[-1].read_text(encoding="utf-8"), str(existing[-1]))


def exported_config(path: str | Path) -> dict[str, Any] | None:
    """Return the part of a run's config that a folder of artifacts keeps for predictions; None if it has none.

    It has the keys `task`, `data` and `loader`.
    """
    try:
        manifest = json.loads((Path(path) / "manifest.json").read_text(encoding="utf-8"))
        return dict(manifest["provenance"]["config"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def with_overrides(config: Mapping[str, Any], pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a stored config with the values of `pairs`, by full key.

    Raises:
        ConfigError: A key is unknown.
    """
    known = known_keys(config)
    raise_if_any(*(known.unknown(path, value) for path, value in pairs if not is_known(config, path)))
    changed = OmegaConf.create(dict(config))
    for path, value in pairs:
        set_value(changed, path, value)
    return unresolved(changed)


def known_keys(config: Mapping[str, Any]) -> KnownKeys:
    """Return the keys that a stored config has."""
    return KnownKeys(jobs.TrainJob, Groups((own_folder(),)), config)


def job_from_config(config: Mapping[str, Any]) -> jobs.TrainJob:
    """Return the typed job of a stored config.

    Raises:
        ConfigError: All its errors.
    """
    job = typed_job(config, known_keys(config))
    assert isinstance(job, jobs.TrainJob)
    return job


def job_from_text(text: str, trust: Sequence[str] | None, overrides: Sequence[tuple[str, Any]] = ()) -> jobs.TrainJob:
    """Return the typed job of a stored text, with changes by full key.

    Args:
        text: The stored config.
        trust: Packages that the user trusts; None if this process wrote the text itself.
        overrides: Full keys and values that replace the stored ones.

    Raises:
        CheckpointError: The config names code that is not trusted.
        ConfigError: A key is unknown, or the config has errors.
    """
    config = parse_stored_config(text)
    if trust is not None and (untrusted := untrusted_targets(config, trust)):
        raise CheckpointError(*untrusted)
    return job_from_config(with_overrides(locate_paths(config), overrides))


def untrusted_targets(config: Mapping[str, Any], trust: Sequence[str]) -> list[str]:
    """Return a message for each `_target_` of a stored config that must not be run.

    Args:
        config: The stored config.
        trust: Packages that the user trusts, from the command line and never from the stored config.
    """
    problem = f"a checkpoint may name only parts of trainer and classes of {', '.join(LIBRARIES)}"
    return [
        format_error(path, problem, f"If you trust it, set trust=[{target.partition('.')[0]}]", value=target)
        for path, target in _targets(config)
        if not (_is_named(target, trust) or _is_known(target))
    ]


def trust_argument(config: Mapping[str, Any]) -> str:
    """Return ` trust=[my_parts]` with the packages that a stored config needs; "" if it needs none."""
    packages = {target.partition(".")[0] for _, target in _targets(config) if not _is_known(target)}
    return f" trust=[{','.join(sorted(packages))}]" if packages else ""


def _targets(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if key == "_target_":
            yield f"{prefix}{key}", str(value)
        yield from _targets(value, f"{prefix}{key}.")


def _is_named(target: str, packages: Sequence[str]) -> bool:
    return any(target.startswith(f"{package}.") for package in packages)


def _is_known(target: str) -> bool:
    return signatures.defines(target) or _is_library_class(target)


def _is_library_class(target: str) -> bool:
    """Return whether a target is a class in a module of a library.

    Every name before the last must be a module of that library: a module also holds what it imports, and
    `transformers.utils.os.system` would be a loophole.
    """
    *modules, name = target.split(".")
    if not _is_named(target, LIBRARIES) or not name[:1].isupper():
        return False
    spec = find_spec(modules[0])
    for folder in map(Path, spec.submodule_search_locations or () if spec else ()):
        path = folder.joinpath(*modules[1:])
        if path.is_dir() or path.with_suffix(".py").is_file():
            return True
    return False
