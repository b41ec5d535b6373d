"""The config of a run that is resumed: the stored one, with the changes that are allowed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from trainer.config import jobs, schema
from trainer.config.compose import SETTING_ERRORS, apply_overrides, compose, plain, set_value, unresolved
from trainer.config.groups import Groups, own_folder
from trainer.config.keys import KnownKeys
from trainer.config.overrides import CommandLine, is_sweep
from trainer.config.parts import validate_part, validate_value
from trainer.config.paths import data_paths, locate_paths, missing_paths
from trainer.config.stored import (
    MAY_CHANGE,
    describe_change,
    differences,
    explicit_missing_data,
    raise_problems,
    read_stored_config,
)
from trainer.config.trust import keep_references, names_environment, trust_problems
from trainer.config.validate import validate_config, validate_syntax
from trainer.errors import CheckpointError, ConfigError, format_error
from trainer.layout import CHECKPOINTS

NOTES = {
    "compile": "the run is not equal to the last bit to a run without this change, and dropout draws other numbers",
    "deterministic": "on a GPU, the run is not equal to the last bit to a run without this change",
    "train.duration": "the rest of the schedule follows the new length, so the learning rate may jump at this step",
}
"""Consequences of a change that is allowed."""


def resume_config(stored: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the config of the resumed run, and a note for each change that has consequences.

    Args:
        stored: The config in the checkpoint.
        current: The requested config, complete.

    Raises:
        ConfigError: They differ in keys that a run keeps; has every difference, old and new.
    """
    current = _with_measured_rate(stored, current)
    changes = list(differences(stored, current))
    safe_keys = (*MAY_CHANGE, *data_paths(current, jobs.TrainJob))
    forbidden = [
        (key, old, new)
        for key, old, new in changes
        if not any(fnmatchcase(key, safe) for safe in safe_keys) and not names_environment(old)
    ]
    if forbidden:
        raise ConfigError(*(_forbidden_change(*change, stored) for change in forbidden))
    notes = [f"{key}: {describe_change(old, new)}; {NOTES[key]}" for key, old, new in changes if key in NOTES]
    return dict(current), notes


def _with_measured_rate(stored: Mapping[str, Any], current: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config with the learning rate that the run has measured, if `auto` asks for one."""
    optimizer = current.get("optimizer")
    if not isinstance(optimizer, Mapping) or optimizer.get("lr") != "auto" or "lr" not in stored.get("optimizer", {}):
        return current
    return {**current, "optimizer": {**optimizer, "lr": stored["optimizer"]["lr"]}}


def _forbidden_change(key: str, old: object, new: object, stored: Mapping[str, Any]) -> str:
    remedy = "Keep the old value, or start a new run"
    if "weights" in stored.get("model", {}):
        remedy += "; model.weights=<checkpoint> starts the new run from the weights of this one"
    group, change = key.removesuffix("._target_"), describe_change(old, new)
    options = [Groups((own_folder(),)).option_of(group, str(target)) for target in (old, new)] if group != key else []
    if options and all(options):
        key, change = group, " -> ".join(map(str, options))
    return f"{key}: cannot change when a run is resumed: {change}. {remedy}."


def compose_resumed(
    line: CommandLine, choices: Sequence[Override], path: str
) -> tuple[dict[str, Any], list[str], list[str], list[str]]:
    """Return the config of the resumed run, notes about changes, errors, and those of files that do not exist.

    Args:
        line: The command line.
        choices: Its valid choices of options.
        path: A run folder or a checkpoint folder.

    Raises:
        CheckpointError: There is no run, or its config names code that is not trusted.
    """
    file, stored = read_stored_config(path)
    _check_trust(line, stored)
    problems = _conflicts(line, choices, path)
    # Trust holds for one command, and never comes from the checkpoint itself.
    base, tracker_notes = _without_foreign_trackers(stored | {"resume": None, "trust": []}, line, Path(path))
    try:
        base |= _chosen_parts(line, choices)
    except ConfigError as error:
        problems += error.messages
    known = KnownKeys(jobs.TrainJob, line.groups, base)
    wrong = [known.validate_override(item) for item in line.overrides.values]
    problems += [message for messages in wrong for message in messages]
    changed = OmegaConf.create(base)
    valid = [item for item, messages in zip(line.overrides.values, wrong, strict=True) if not messages]
    problems += apply_overrides(changed, valid)
    values, without_value = plain(changed)
    invalid = validate_config(values, KnownKeys(jobs.TrainJob, line.groups, values, is_stored=True))
    missing = explicit_missing_data(locate_paths(values, jobs.TrainJob), line.overrides.keys())
    if invalid and not problems and not without_value:
        raise_problems([*invalid, *missing], base, file)
    problems += without_value or invalid
    try:
        config, notes = resume_config(stored, values if without_value else keep_references(values, changed))
    except ConfigError as error:
        return values, [], [*problems, *error.messages], missing
    return config, [*tracker_notes, *notes], problems, missing


def _without_foreign_trackers(
    config: dict[str, Any], line: CommandLine, path: Path
) -> tuple[dict[str, Any], list[str]]:
    """Return a stored config without trackers if this user has not made the run, and a note about them.

    A run from a stranger would write into the user's accounts. Trackers that the command line names stay.

    Args:
        config: The stored config.
        line: The command line.
        path: A run folder or a checkpoint folder.
    """
    from trainer.ownership import read_tracker_ids  # not needed to report a wrong config

    logger = config["logger"]
    folder = path if (path / CHECKPOINTS).is_dir() else path.absolute().parent.parent
    explicit = line.overrides.keys()
    is_safe = "logger.trackers" in explicit or (logger.get("offline") is True and "logger.offline" not in explicit)
    if not logger.get("trackers") or is_safe or read_tracker_ids(folder) is not None:
        return config, []
    names = ",".join(map(str, logger["trackers"]))
    note = f"logger.trackers: off, as you have not started this run; logger.trackers=[{names}] turns them on"
    return config | {"logger": {**logger, "trackers": []}}, [note]


def _check_trust(line: CommandLine, stored: dict[str, Any]) -> None:
    values = [item.value() for item in line.overrides.values if item.key_or_group == "trust"]
    trust = values[-1] if values and isinstance(values[-1], list) else []
    if problems := trust_problems(stored, [str(package) for package in trust], line.overrides.keys()):
        raise CheckpointError(*problems)


def _conflicts(line: CommandLine, choices: Sequence[Override], path: str) -> list[str]:
    problems = []
    if line.arguments.is_sweep:
        problem = "several jobs cannot resume one run"
        problems.append(format_error("resume", problem, "Leave out --multirun", value=path))
    if line.arguments.options.cfg:
        remedy = f"The resumed run uses {Path(path) / 'config.yaml'}"
        problems.append(format_error("--cfg", "there is nothing to compose", remedy))
    parts = schema.groups(jobs.TrainJob)
    presets = [item.key_or_group for item in choices if item.key_or_group not in parts]
    return [
        *problems,
        *(format_error(group, "cannot be chosen when a run is resumed", "Leave it out") for group in presets),
    ]


def _chosen_parts(line: CommandLine, choices: Sequence[Override]) -> dict[str, Any]:
    """Return the parts that the command line chooses, composed, to be compared with the stored ones."""
    parts = schema.groups(jobs.TrainJob)
    chosen = [item for item in choices if item.key_or_group in parts and not is_sweep(item)]
    if not chosen:
        return {}
    lines = [str(item.input_line) for item in chosen]
    config, _ = compose(line.folder, line.config_name, [*line.hydra_overrides(), *lines])
    composed = unresolved(config)
    return {item.key_or_group: composed[item.key_or_group] for item in chosen}


def errors_without_run(line: CommandLine, choices: Sequence[Override]) -> list[str]:
    """Return the errors of a command line that show although the run that it resumes cannot be read.

    A key of a part that the command line does not choose is wrong only if it is wrong for every option of its group.

    Args:
        line: The command line.
        choices: Its valid choices of options.
    """
    groups, sections = schema.groups(jobs.TrainJob), schema.sections(jobs.TrainJob)
    chosen = [item for item in choices if not is_sweep(item)]
    texts = [str(item.input_line) for item in chosen]
    try:
        tree = unresolved(compose(line.folder, line.config_name, [*line.hydra_overrides(), *texts])[0])
    except ConfigError as error:
        return list(error.messages)
    known = KnownKeys(jobs.TrainJob, line.groups, tree)
    names = {item.key_or_group for item in chosen}
    parts = {
        group: [tree[group]] if group in names else [line.groups.content(group, each) for each in options]
        for group in groups
        if (options := line.groups.options(group))
    }
    of_sections = {f"{name}.{key}": each for name in sections for key, each in schema.keys(sections[name]).items()}
    keys = schema.keys(jobs.TrainJob) | of_sections
    problems: list[str] = []
    values = _line_values(line, sections)
    for path, value in values.items():
        if (top := path.partition(".")[0]) in groups:
            problems += _errors_of_key(path, value, parts[top], known)
        elif path not in sections:
            problems += validate_value(path, value, keys[path]) if path in keys else [known.unknown(path, value)]
    return [*problems, *validate_syntax(values)]


def _line_values(line: CommandLine, sections: Collection[str]) -> dict[str, Any]:
    """Return the values of a command line by full key, without sweeps, deletions, and keys that are new."""
    values: dict[str, Any] = {}
    for item in line.overrides.values:
        if is_sweep(item) or item.is_delete() or item.is_add() or item.is_force_add():
            continue
        path, value = item.key_or_group, item.value()
        if path in sections and isinstance(value, dict):
            values |= {f"{path}.{key}": each for key, each in value.items()}
        else:
            values[path] = value
    return values


def _errors_of_key(path: str, value: object, parts: Sequence[Mapping[str, Any]], known: KnownKeys) -> list[str]:
    """Return the errors of a key of a part: those with the first part that has it, if there are errors with each."""
    if "${" in str(value):
        return []
    group, _, inner = path.partition(".")
    name = inner.partition(".")[0]
    shared = schema.shared_keys(jobs.TrainJob, group)
    problems: list[str] = []
    having = [part for part in parts if isinstance(part, Mapping) and (name in part or name in shared)]
    for part in reversed(having):
        config = OmegaConf.create({group: dict(part)})
        try:
            set_value(config, path, value)
        except SETTING_ERRORS:  # such as a list in the place of a mapping
            continue
        changed = unresolved(config)
        messages = validate_part(group, changed[group], replace(known, tree={**known.tree, **changed}))
        for paths in missing_paths(locate_paths(changed, jobs.TrainJob), jobs.TrainJob):
            messages += paths
        problems = [each for each in messages if each.startswith((f"{path}:", f"{path}."))]
        if not problems:
            return []
    return problems if having or not inner else [known.unknown(path, value)]
