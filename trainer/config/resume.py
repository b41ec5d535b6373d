"""`resume=PATH`: the stored config is the base, and the command line may change only what is safe to change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from trainer.config import jobs, schema
from trainer.config.compose import apply_overrides, compose, plain, unresolved
from trainer.config.overrides import CommandLine, is_sweep
from trainer.config.stored import load_stored_config, untrusted_targets
from trainer.config.unknown_keys import KnownKeys
from trainer.config.validate import validate_config
from trainer.errors import CheckpointError, ConfigError, format_error

SAFE = (
    "device",
    "devices",
    "shard",
    "launch.*",
    "resume",
    "trust",
    "run.*",
    "train.duration",
    "train.accumulate",
    "train.log_every",
    "train.eval_every",
    "train.patience",
    "loader.workers",
    "loader.prefetch",
    "loader.pin_memory",
    "loader.persistent_workers",
    "loader.eval_batch_size",
    "checkpoint.*",
    "logger.*",
    "export.*",
)
"""Keys that change how a run is executed and shown. All others change what it learns, so a resumed run keeps them."""

NOTES = {
    "train.duration": "the rest of the schedule follows the new length, so the learning rate may jump at this step",
}
"""Consequences of a change that is allowed."""

_ABSENT: Any = object()


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
    forbidden = [change for change in changes if not any(fnmatchcase(change[0], safe) for safe in SAFE)]
    if forbidden:
        raise ConfigError(*(_forbidden_change(*change, stored) for change in forbidden))
    notes = [f"{key}: {_change(old, new)}; {NOTES[key]}" for key, old, new in changes if key in NOTES]
    return dict(current), notes


def _with_measured_rate(stored: Mapping[str, Any], current: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the config with the learning rate that the run has measured, if `auto` asks for one."""
    optimizer = current.get("optimizer")
    if not isinstance(optimizer, Mapping) or optimizer.get("lr") != "auto" or "lr" not in stored.get("optimizer", {}):
        return current
    return {**current, "optimizer": {**optimizer, "lr": stored["optimizer"]["lr"]}}


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


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _change(old: Any, new: Any) -> str:
    return " -> ".join("(absent)" if value is _ABSENT else repr(value) for value in (old, new))


def _forbidden_change(key: str, old: Any, new: Any, stored: Mapping[str, Any]) -> str:
    remedy = "Keep the old value, or start a new run"
    if "weights" in stored.get("model", {}):
        remedy += "; model.weights=<checkpoint> starts the new run from these weights"
    return f"{key}: cannot change when a run is resumed: {_change(old, new)}. {remedy}."


def compose_resumed(
    line: CommandLine, choices: Sequence[Override], path: str
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return the config of the resumed run, notes about changes, and errors.

    Args:
        line: The command line.
        choices: Its valid choices of options.
        path: A run folder or a checkpoint folder.

    Raises:
        CheckpointError: There is no run, or its config names code that is not trusted.
    """
    stored = load_stored_config(path)
    _check_trust(line, stored)
    problems = _conflicts(line, choices, path)
    # Trust holds for one command, and never comes from the checkpoint itself.
    base = stored | {"resume": None, "trust": []}
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
    problems += without_value or validate_config(values, KnownKeys(jobs.TrainJob, line.groups, values))
    try:
        config, notes = resume_config(stored, values)
    except ConfigError as error:
        return values, [], [*problems, *error.messages]
    return config, notes, problems


def _check_trust(line: CommandLine, stored: dict[str, Any]) -> None:
    values = [item.value() for item in line.overrides.values if item.key_or_group == "trust"]
    trust = values[-1] if values and isinstance(values[-1], list) else []
    if untrusted := untrusted_targets(stored, [str(package) for package in trust]):
        raise CheckpointError(*untrusted)


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
