"""The config in a run and its checkpoints: read it, compare it, and change it.

A checkpoint is data and may come from anyone; `trainer.config.trust` restricts what its config may name.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException

from trainer.config import jobs, schema, sections, signatures
from trainer.config.compose import SETTING_ERRORS, describe_setting_error, set_value, unresolved
from trainer.config.groups import Groups, own_folder, yaml_problem
from trainer.config.keys import KnownKeys, find, is_known
from trainer.config.parts import complete_part, validate_value
from trainer.config.paths import locate_paths, missing_paths
from trainer.config.trust import (
    ENVIRONMENT,
    resolve_environment,
    trust_problems,
)
from trainer.config.validate import job_of, typed_job, validate_config
from trainer.documents import read_export_manifest, read_text
from trainer.errors import CheckpointError, ConfigError, format_error, raise_if_any, show_value
from trainer.layout import CONFIG, EXPORT_MANIFEST, RUNS
from trainer.shapes import DocumentError, check_shape

logger = logging.getLogger(__name__)

_GROUPS = schema.groups(jobs.TrainJob)
_ABSENT: Any = object()
_ANOTHER_COPY = "Copy it from another checkpoint of the run"
_MAX_DEPTH = 50
"""Levels of a stored config: the levels of a value of the command line, and the levels of its key."""
_TABLES = "trainer.data.files.Files"
"""The source that declares the format of cells."""
_PART = {"_target_": str}
_REQUIRED = ("task", "data", "model", "loss", "optimizer")
_SECTIONS = [name for name, default in schema.defaults(jobs.TrainJob).items() if isinstance(default, dict)]
_SHAPE = {
    **{f"{name}?": (_PART, None) for name in _GROUPS if name not in _REQUIRED},
    **dict.fromkeys(_REQUIRED, _PART),
    **{f"{name}?": {str: object} for name in _SECTIONS},
}
"""The shape of a stored config: the parts and the sections; their keys are validated one by one."""

TRAINING_KEYS = (
    "precision",
    "compile",
    "shard",
    "devices",
    "device",
    "deterministic",
    "run",
    *(f"train.{name}" for name in schema.keys(sections.TrainSection) if name != "fused_head"),
    "checkpoint",
    "ema",
    "eval",
    "logger",
    "observers",
    "launch",
    "sweep",
    "model.weights",
    "model.weights_rename",
    "model.weights_ignore",
    "model.freeze",
    "model.noisy_tune",
    "model.head_dropout",
    "model.multi_sample_dropout",
    "model.gradient_checkpointing",
    "model.channels_last",
    "optimizer",
    "scheduler",
    "prune",
    "perturb",
    "export",
)
"""Keys without effect on the outputs of a trained model: its weights are in the checkpoint."""

MAY_CHANGE = (
    "device",
    "devices",
    "compile",
    "deterministic",
    "shard",
    "launch.*",
    "sweep.*",
    "resume",
    "trust",
    "data.cache_dir",
    "data.strict",
    "data.max_line_bytes",
    "data.max_expansion",
    "data.max_pixels",
    "run.*",
    "train.duration",
    "train.accumulate",
    "loader.tokens",
    "train.fused_head",
    "model.gradient_checkpointing",
    "train.log_every",
    "train.eval_every",
    "train.patience",
    "train.max_time",
    "loader.workers",
    "loader.prefetch",
    "loader.pin_memory",
    "loader.persistent_workers",
    "loader.timeout",
    "loader.eval_batch_size",
    "checkpoint.*",
    "eval.*",
    "logger.*",
    "export.*",
    "metrics",
    "observers",
)
"""Keys that may change on resume: they decide how a run is executed and shown. All others decide what it learns.

Paths of data may change too: a checkpoint has a fingerprint of the content, which is compared when a run is resumed.
"""

EARLIER_VALUES = {"train.fused_head": False}
"""The values with which runs without these keys were trained, of keys whose default changes the bits of a run."""


def config_text(config: Mapping[str, Any]) -> str:
    """Return a config as the YAML that is stored."""
    return yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)


def parse_stored_config(text: str, name: str = CONFIG) -> dict[str, Any]:
    """Return the config in a stored text; nothing in it is run. `name` is the file's name for messages.

    Raises:
        CheckpointError: The text is not a config.
    """
    try:
        return {key: _copy(value) for key, value in _parse(text).items()}
    except DocumentError as error:
        raise CheckpointError(format_error(name, str(error), _ANOTHER_COPY)) from error


@lru_cache(maxsize=4)
def _parse(text: str) -> dict[str, Any]:
    """Return the config in a stored text; a command reads the text of its run several times.

    Raises:
        DocumentError: The text is not a config.
    """
    try:
        problem = yaml_problem(text, _MAX_DEPTH)
        config = {} if problem else _load(text)
    # Besides its own errors, the parser raises ValueError for long integers and impossible dates.
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DocumentError(f"cannot be read ({reason})") from error
    if problem:
        raise DocumentError(f"cannot be read (it {problem})")
    if "model" not in config:
        raise DocumentError("does not contain the config of a run")
    try:
        check_shape(config, _SHAPE)
    except DocumentError as error:
        raise DocumentError(f"is damaged: {error}") from error
    return complete_config(config)


def _load(text: str) -> dict[str, Any]:
    """Return the mapping in a YAML text as OmegaConf reads it, empty if it is none."""
    loaded = yaml.load(text, Loader=_yaml_loader())
    if not isinstance(loaded, dict):
        return {}
    if _is_plain(loaded):
        return {key: _copy(value) for key, value in loaded.items()}  # an alias becomes a value of its own
    return unresolved(OmegaConf.create(loaded))


@cache
def _yaml_loader() -> Any:
    """Return OmegaConf's loader, with the parser of libyaml if PyYAML has it: it takes a tenth of the time."""
    own = get_yaml_loader()
    fast = getattr(yaml, "CSafeLoader", None)
    return own if fast is None else type("Loader", (fast, own), {})


def _is_plain(value: object) -> bool:
    """Return whether OmegaConf would return a value as it is."""
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, int | float) or (isinstance(value, str) and "${" not in value)


def _copy(value: Any) -> Any:
    """Return a copy of a value of a stored config, sooner than `deepcopy`, which follows any object."""
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def complete_config(config: dict[str, Any]) -> dict[str, Any]:
    """Return a config with keys that are newer than it; their defaults keep the behavior that it was stored with."""
    groups = Groups((own_folder(),))
    defaults = schema.defaults(jobs.TrainJob)
    whole = dict(config)
    for name in schema.keys(jobs.TrainJob):
        default, value = defaults.get(name), whole.setdefault(name, None if name in _GROUPS else defaults.get(name))
        if isinstance(value, dict) and isinstance(default, dict):
            earlier = {key: EARLIER_VALUES.get(f"{name}.{key}", default[key]) for key in default}
            whole[name] = value | {key: earlier[key] for key in earlier if key not in value}
        if isinstance(value, dict) and name in _GROUPS:
            whole[name] = complete_part(name, whole[name], groups)
    return whole


def load_stored_config(path: str | Path, key: str = "resume") -> dict[str, Any]:
    """Return the config of a run folder or a checkpoint folder; `key` is the key that names it, for messages.

    Raises:
        CheckpointError: The folder has no config.
    """
    return read_stored_config(path, key)[1]


def read_stored_config(path: str | Path, key: str = "resume") -> tuple[Path, dict[str, Any]]:
    """Return the config of a run folder or a checkpoint folder as `load_stored_config` does, and the file it is in."""
    folder = Path(path)
    # Every checkpoint has a copy, so a run folder that has lost its own config can still be used.
    own = folder.parent if folder.name == "export" else folder
    files = [own / CONFIG, *sorted(own.glob(f"checkpoints/step-*/{CONFIG}"), reverse=True)]
    existing = [file for file in files if file.is_file()]
    if not existing:
        problem = "contains neither config.yaml nor a checkpoint" if folder.is_dir() else "no such folder"
        if folder.exists() and not folder.is_dir():
            problem = "is not a folder"
        remedy = similar_run(folder) or "Name a run folder or one of its checkpoints"
        if (folder / "predict.py").is_file():
            problem = "contains artifacts without the run that made them"
            remedy = f"Run the folder's own script: python {folder / 'predict.py'}"
        raise CheckpointError(format_error(key, problem, remedy, value=str(path)))
    for file in existing[:-1]:
        try:
            return file, parse_stored_config(read_text(file, _ANOTHER_COPY), str(file))
        except CheckpointError as error:
            _warn_of_copy(error.messages[0])
    return existing[-1], parse_stored_config(read_text(existing[-1], _ANOTHER_COPY), str(existing[-1]))


def similar_run(folder: Path) -> str:
    """Return the remedy for a run that does not exist: the newest one of this `run.name`, or of a similar name."""
    above = folder.parent if folder.parent.name else RUNS
    if folder.exists():
        return ""
    names: list[str] = []
    with suppress(OSError):  # there is no such folder, or it cannot be read
        names = sorted((item.name for item in above.iterdir() if (item / CONFIG).is_file()), reverse=True)
    named = [name for name in names if name == folder.name or name.endswith(f"_{folder.name}")]
    near = named or get_close_matches(folder.name, names, n=1)
    return f"Did you mean {above / near[0]}" if near else ""


@cache
def _warn_of_copy(problem: str) -> None:
    """Warn once that a config is damaged: several parts of a command read it."""
    logger.warning("%s The copy in a checkpoint is used.", problem)


def exported_config(path: str | Path) -> dict[str, Any] | None:
    """Return the part of a run's config that a folder of artifacts keeps for predictions; None if it has none.

    It has the keys `task`, `data` and `loader`.

    Raises:
        CheckpointError: The folder has a manifest that is not what was written.
    """
    manifest = read_export_manifest(Path(path))
    config: dict[str, Any] | None = None if manifest is None else manifest["provenance"].get("config")
    if config is not None and (problems := list(_exported_problems(config))):
        raise CheckpointError(*(f"{Path(path) / EXPORT_MANIFEST}: {each}" for each in problems))
    return config


def _exported_problems(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the values that predictions use as they are; the task checks its own."""
    batch_size = "eval_batch_size"
    annotation = schema.keys(sections.LoaderSection)[batch_size]
    yield from validate_value(f"loader.{batch_size}", config["loader"][batch_size], annotation)
    table = signatures.read(_TABLES)
    assert table is not None, "a class of this package"
    for key in ("list_separator", "quote"):
        yield from validate_value(f"data.{key}", config["data"][key], table.annotation(key))


def with_overrides(config: Mapping[str, Any], pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return a stored config with the values of `pairs`, by full key.

    Raises:
        ConfigError: A key is unknown, or its value does not fit the value in its place.
    """
    if not pairs:
        return {key: _copy(value) for key, value in config.items()}
    known = known_keys(config)
    raise_if_any(*(known.unknown(path, value) for path, value in pairs if not is_known(config, path)))
    changed = OmegaConf.create(dict(config))
    problems: list[str] = []
    for path, value in pairs:
        try:
            set_value(changed, path, value)
        except SETTING_ERRORS as error:  # such as a list in the place of a mapping
            problems.append(describe_setting_error(path, error))
    raise_if_any(*problems)
    return unresolved(changed)


def override_problems(config: Mapping[str, Any], pairs: Sequence[tuple[str, Any]]) -> tuple[list[str], list[str]]:
    """Return the errors that changes of a stored config cause, and those of files of data that do not exist.

    Keys that only training uses cause none: the verbs that take such changes do not train.

    Args:
        config: The stored config.
        pairs: The full key and the value of each change.
    """
    known, right = known_keys(config), [pair for pair in pairs if is_known(config, pair[0])]
    problems = [known.unknown(path, value) for path, value in pairs if not is_known(config, path)]
    if not right:
        return problems, []
    try:
        changed = with_overrides(config, right)
    except ConfigError as error:
        return [*problems, *error.messages], []
    own = frozenset(validate_config(config, known))
    caused = [each for each in validate_config(changed, known_keys(changed)) if each not in own]
    problems += [each for each in caused if not _concerns(each, TRAINING_KEYS)]
    return problems, explicit_missing_data(changed, [path for path, _ in right])


def explicit_missing_data(config: Mapping[str, Any], keys: Collection[str]) -> list[str]:
    """Return the messages about files of data that do not exist and that some keys of a config name."""
    data = config.get("data")
    if not isinstance(data, Mapping):
        return []
    # Alone: a split of an evaluation may have the file of another one.
    named = {key: value for key, value in data.items() if key == "_target_" or f"data.{key}" in keys}
    return missing_paths({"data": named}, jobs.TrainJob)[0]


def known_keys(config: Mapping[str, Any]) -> KnownKeys:
    """Return the keys that a stored config has."""
    return KnownKeys(jobs.TrainJob, Groups((own_folder(),)), config, is_stored=True)


def job_from_config(config: Mapping[str, Any]) -> jobs.TrainJob:
    """Return the typed job of a complete config.

    Raises:
        ConfigError: All its errors.
    """
    job = typed_job(config, known_keys(config))
    assert isinstance(job, jobs.TrainJob)
    return job


def job_from_text(
    text: str,
    trust: Sequence[str] | None,
    overrides: Sequence[tuple[str, Any]] = (),
    *,
    file: Path = Path(CONFIG),
    unused: Collection[str] = (),
) -> jobs.TrainJob:
    """Return the typed job of a stored text, with changes by full key.

    Args:
        text: The stored config.
        trust: Packages that the user trusts; None if this process wrote the text itself.
        overrides: Full keys and values that replace the stored ones.
        file: The file that contains the text, for messages.
        unused: Keys without effect on what the job is for: errors in them are ignored, see `TRAINING_KEYS`.

    Raises:
        CheckpointError: The config names code that is not trusted, or has errors.
        ConfigError: A key of `overrides` is unknown, or its value is wrong.
    """
    config = parse_stored_config(text, str(file)) | {"observers": []}  # only training makes them
    if trust is not None:
        if problems := trust_problems(config, trust, [path for path, _ in overrides]):
            raise CheckpointError(*problems)
        # A stored `trust` would hold for the runs that this one names, such as its teacher.
        config |= {"resume": None, "trust": list(trust)}
    changed = resolve_environment(with_overrides(config, overrides))
    # Paths of the command line do not start at `run.cwd`.
    replaced = [(path, find(changed, path)) for path, _ in overrides]
    located = with_overrides(locate_paths(changed, jobs.TrainJob), replaced)
    if trust is None and not overrides:  # this process has checked it already
        return cast(jobs.TrainJob, job_of(_without_keys(located, unused), jobs.TrainJob))
    return _usable_job(located, config, file, unused)


def unchanged_job(text: str, trust: Sequence[str], unused: Collection[str] = ()) -> jobs.TrainJob:
    """Return the typed job of a stored text that has been checked, without the changes of the command line.

    References to the environment stay as they are written unless they are trusted: the changes may replace them.
    """
    if ENVIRONMENT in trust:
        return job_from_text(text, trust, unused=unused)
    config = parse_stored_config(text) | {"resume": None, "trust": list(trust)}
    return _usable_job(locate_paths(config, jobs.TrainJob), config, Path(CONFIG), unused)


def _usable_job(
    config: Mapping[str, Any], stored: Mapping[str, Any], file: Path, unused: Collection[str]
) -> jobs.TrainJob:
    """Return the typed job of a config whose unused keys may have any value.

    Args:
        config: The stored config with the changes of the command line.
        stored: The same without these changes.
        file: The file that contains it, for messages.
        unused: As in `job_from_text`.
    """
    usable = _without_keys(config, unused)
    problems = [each for each in validate_config(usable, known_keys(usable)) if not _concerns(each, unused)]
    if problems:
        raise_problems(problems, _without_keys(stored, unused), file)
    return cast(jobs.TrainJob, job_of(usable, jobs.TrainJob))


def _without_keys(config: Mapping[str, Any], unused: Collection[str]) -> dict[str, Any]:
    """Return a config with the defaults of unused keys of sections, and without unused keys of parts."""
    changed = dict(config)
    defaults = schema.defaults(jobs.TrainJob)
    for path in unused:
        name, _, key = path.partition(".")
        default, value = defaults.get(name), changed.get(name)
        if name in _GROUPS and isinstance(value, dict) and key:
            changed[name] = {other: item for other, item in value.items() if other != key}
        elif key:
            changed[name] = {**config[name], key: default[key]} if isinstance(default, dict) else default
    return changed


def _concerns(problem: str, keys: Collection[str]) -> bool:
    """Return whether a message is about one of the keys or about a key in one of them."""
    key = problem.partition(":")[0]
    return any(key == path or key.startswith(f"{path}.") for path in keys)


def raise_problems(problems: Sequence[str], stored: Mapping[str, Any], file: Path) -> None:
    """Raise the errors of a changed config: errors of the stored one make the run unusable, the others are the user's.

    Raises:
        CheckpointError: All of them are in the stored config.
        ConfigError: Some are not.
    """
    if not problems:
        return
    own = frozenset(validate_config(stored, known_keys(stored)))
    messages = [f"{file}: {each}" if each in own else each for each in dict.fromkeys(problems)]
    raise (CheckpointError if own.issuperset(problems) else ConfigError)(*messages)


@contextmanager
def blaming_config(file: Path | None) -> Iterator[None]:
    """Let an error of a part that is built from a stored config name its file: the command is right.

    Args:
        file: The file; None for a new job, whose errors the command has caused.

    Raises:
        CheckpointError: The block raised a `ConfigError`.
    """
    try:
        yield
    except ConfigError as error:
        if file is None:
            raise
        raise CheckpointError(*(f"{file}: {message}" for message in error.messages)) from error


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield dotted key, old and new value of each difference; a part with another `_target_` is one difference."""
    for key in dict.fromkeys([*old, *new]):
        path, before, after = f"{prefix}{key}", old.get(key, _ABSENT), new.get(key, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            targets = before.get("_target_"), after.get("_target_")
            if targets[0] != targets[1]:
                yield f"{path}._target_", *targets
            else:
                yield from differences(before, after, f"{path}.")
        elif _listed(before) != _listed(after) or isinstance(before, bool) != isinstance(after, bool):
            yield path, before, after


def _listed(value: object) -> Any:
    return list(value) if isinstance(value, tuple) else value


def describe_change(old: object, new: object) -> str:
    """Return the old and the new value of a key for a message."""
    return " -> ".join("(absent)" if value is _ABSENT else show_value(value) for value in (old, new))
