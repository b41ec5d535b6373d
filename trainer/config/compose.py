"""Composition of a config from YAML files and overrides, by Hydra, and its conversion to plain values."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import get_overrides_dirname
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, MissingConfigException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from trainer.config import schema, signatures, sources
from trainer.config.groups import HYDRA_KEYS, Groups
from trainer.config.jobs import JOBS, PRESET_GROUPS, TrainJob
from trainer.config.trust import describe_unresolved
from trainer.errors import ConfigError, did_you_mean, format_error

if TYPE_CHECKING:
    from hydra.conf import HydraConf

_OWN_ERRORS = (HydraException, OmegaConfBaseException, ValueError)
"""Exceptions of Hydra and OmegaConf whose messages are sentences."""

_DETAIL = re.compile(r"\s+(?:full_key|object_type|reference_type)[:=]")

_JOB_NAME = "cli"
"""`hydra.job.name` as Hydra's main sets it: the module that starts it."""


def register_defaults(job_type: type = TrainJob) -> None:
    """Make the defaults of a job and its sections available to the YAML files, as `<verb>_defaults`.

    The defaults of the jobs that it extends come along, as its primary config may include theirs.
    """
    for verb, each in JOBS.items():
        if issubclass(job_type, each):
            _register(verb)


@cache
def _register(verb: str) -> None:
    ConfigStore.instance().store(name=f"{verb}_defaults", node=schema.defaults(JOBS[verb]), provider="trainer")


def compose_with_hydra(folder: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose the config `name` of `folder`, with Hydra's own config in its key `hydra`.

    Raises:
        ConfigError: It cannot be composed.
    """
    try:
        with initialize_config_dir(str(folder), version_base="1.3", job_name=_JOB_NAME):
            return hydra_compose(name, overrides=list(overrides), return_hydra_config=True)
    except Exception as error:  # Hydra has an exception of its own only for some of what it cannot compose
        raise ConfigError(composition_problem(error)) from error


def compose(folder: Path, name: str, overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str | None]]:
    """Compose the config `name` of `folder`; return it and the option of each group in it.

    Interpolations that refer to Hydra's own config have values afterwards.

    Raises:
        ConfigError: It cannot be composed.
    """
    config = compose_with_hydra(folder, name, overrides)
    publish_hydra_config(config)
    return without_hydra(config), choices_of(config)


def publish_hydra_config(config: DictConfig) -> None:
    """Give interpolations such as `${hydra:runtime.output_dir}` the values that they have in the job."""
    with read_write(config.hydra), open_dict(config.hydra):
        # A sweep replaces the number and id of the job after the check.
        config.hydra.job.num, config.hydra.job.id = 0, "0"
    # Not by `set_config`, which copies Hydra's part only to have one with the same parent.
    HydraConfig.instance().cfg = cast("HydraConf", config)
    output_dir = os.path.abspath(str(OmegaConf.select(config, "hydra.run.dir")))
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.runtime.output_dir = output_dir
    OmegaConf.set_readonly(config.hydra, True)


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a copy of the config without Hydra's own."""
    job = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    OmegaConf.set_struct(job, True)
    return job


def choices_of(config: DictConfig) -> dict[str, str | None]:
    """Return the option of each group in the config."""
    return {str(key): value for key, value in config.hydra.runtime.choices.items()}


def is_sweep_by_default(config: DictConfig) -> bool:
    """Return whether Hydra's own config asks for a sweep (`hydra.mode`)."""
    return bool(config.hydra.mode == RunMode.MULTIRUN)


def record_overrides(config: DictConfig, overrides: Sequence[Override]) -> None:
    """Record all overrides in Hydra's own config as if Hydra had applied them."""
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.overrides.task = [str(item.input_line) for item in overrides]
        form = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            list(overrides), list(form.exclude_keys), form.item_sep, form.kv_sep
        )


def run_with_hydra(config: DictConfig, job: Callable[[], object]) -> None:
    """Run a job in the environment that Hydra's own config describes: folder, variables, logging, callbacks."""
    # Imported here, as errors of the config are reported without these modules.
    from hydra._internal.callbacks import Callbacks
    from hydra.core.utils import run_job

    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.mode = RunMode.RUN
    callbacks = Callbacks(config)
    name = config.hydra.job.config_name
    callbacks.on_run_start(config=config, config_name=name)
    with initialize_config_dir(os.getcwd(), version_base="1.3", job_name=_JOB_NAME):
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=callbacks)
    failures: list[Exception] = []

    def task(_: DictConfig) -> None:
        try:
            job()
        except Exception as error:
            failures.append(error)
            raise

    with _run_dir_errors(config):  # the job's own errors are in `failures`
        outcome = run_job(
            task_function=task,
            config=config,
            job_dir_key="hydra.run.dir",
            job_subdir_key=None,
            hydra_context=context,
        )
    callbacks.on_run_end(config=config, config_name=name, job_return=outcome)
    if failures:
        # Raised here, as Hydra would print a line of its own before the error.
        raise failures[0]


@contextmanager
def _run_dir_errors(config: DictConfig) -> Iterator[None]:
    """Turn an error of the file system in the block into an error of Hydra's run folder.

    Raises:
        ConfigError: The folder cannot be created.
    """
    try:
        yield
    except OSError as error:
        problem = f"cannot be created ({error.strerror})"
        raise ConfigError(format_error("hydra.run.dir", problem, value=config.hydra.run.dir)) from error


def composition_problem(error: Exception) -> str:
    """Return the message of an exception of Hydra with its hidden cause, without what it adds for developers."""
    if isinstance(error, MissingConfigException) and str(error.missing_cfg_file).startswith("hydra/"):
        group, _, name = str(error.missing_cfg_file).rpartition("/")
        remedy = did_you_mean(name, list(error.options or []))
        return format_error(group, "must be the name of an option", remedy, value=name)
    texts = [str(each) for each in (error, error.__cause__) if each is not None]
    lines = [line.strip() for text in texts for line in text.splitlines() if not _DETAIL.match(line)]
    message = " ".join(filter(None, lines)) or type(error).__name__
    if isinstance(error, RecursionError):
        return "The config is nested too deeply."
    return message if isinstance(error, _OWN_ERRORS) else f"The config cannot be composed ({message})."


def apply_overrides(config: DictConfig, overrides: Sequence[Override]) -> list[str]:
    """Change `config` in place as Hydra does; return a message for each override that cannot be applied."""
    problems = []
    for override in overrides:
        try:
            if override.is_delete():
                parent, _, name = override.key_or_group.rpartition(".")
                with open_dict(config):
                    del (OmegaConf.select(config, parent) if parent else config)[name]
            else:
                set_value(config, override.key_or_group, override.value())
        except SETTING_ERRORS as error:
            problems.append(describe_setting_error(override.key_or_group, error))
    return problems


SETTING_ERRORS = (OmegaConfBaseException, ValueError, TypeError, KeyError, AttributeError)
"""Errors of setting a value that does not fit the value in its place."""


def describe_setting_error(path: str, error: Exception) -> str:
    """Return the message for a value that cannot be set."""
    reason = str(error).partition("\n")[0].rstrip(".")
    if reason.startswith("Incompatible key type 'NoneType'"):
        reason = 'A key of the mapping is null. Set it in a YAML file, and write "null" in quotes there'
    return format_error(path, "cannot be set", reason)


def set_value(config: DictConfig, path: str, value: Any) -> None:
    """Set the value at a dotted path in place; merge a mapping into the existing one."""
    OmegaConf.update(config, path, value, merge=True, force_add=True)


def plain(config: DictConfig) -> tuple[dict[str, Any], list[str]]:
    """Return a config as mappings, lists and scalars, and a message for each interpolation without a value.

    If there is such a message, interpolations stay as they are written. `???` always stays.
    """
    written = unresolved(config)
    if "${" not in str(written):
        return written, []
    try:
        return _container(config, resolve=True), []
    except OmegaConfBaseException:
        problems = list(filter(None, (_unresolved(config, path) for path in _interpolations(config))))
        if not problems:
            raise
        return written, problems


def unresolved(config: DictConfig) -> dict[str, Any]:
    """Return a config as mappings, lists and scalars, with interpolations as they are written."""
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
        written: Any = unresolved(config)
        for name in path.split("."):
            written = written[int(name) if isinstance(written, list) else name]
        return describe_unresolved(path, written, error)
    return ""


def drop_replaced_keys(
    config: Mapping[str, Any], choices: Mapping[str, str | None], explicit: Collection[str], groups: Groups
) -> dict[str, Any]:
    """Return the config without the keys of options whose `_target_` was replaced: they belong to the old target.

    A class derived from the old target keeps the keys that it takes.

    Keys in `explicit` (dotted, from the command line) stay, and so do keys that the chosen experiment and debug options
    set for the group, and Hydra's own keys.
    """
    kept_keys = {*explicit, *preset_files(choices, groups)}
    kept = dict(config)
    for group, part in config.items():
        option = groups.content(group, choices.get(group) or "")
        if not isinstance(part, Mapping) or option.get("_target_") in (None, part.get("_target_")):
            continue
        taken = _inherited_keys(part.get("_target_"), option)
        kept[group] = {
            key: value
            for key, value in part.items()
            if key in HYDRA_KEYS or f"{group}.{key}" in kept_keys or key not in option or key in taken
        }
    return kept


def preset_files(choices: Mapping[str, str | None], groups: Groups) -> dict[str, Path]:
    """Return the keys of parts and sections that the chosen experiment and debug options set, with their files."""
    files: dict[str, Path] = {}
    for preset in PRESET_GROUPS:
        option = choices.get(preset) or ""
        if (file := groups.file(preset, option)) is not None:
            parts = groups.content(preset, option).items()
            files |= {f"{name}.{key}": file for name, part in parts if isinstance(part, Mapping) for key in part}
    return files


def _inherited_keys(target: object, option: Mapping[str, Any]) -> list[str]:
    """Return the keys of an option that a target takes because it is derived from the option's own one."""
    if not isinstance(target, str) or not sources.is_subclass(target, str(option["_target_"])):
        return []
    signature = signatures.read(target, any_package=True)
    return [key for key in option if signature is not None and signature.annotation(key) is not None]
