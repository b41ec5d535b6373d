"""`resume=PATH`: the stored configuration is the base, and the command line may change what is safe to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from trainer.config import jobs, schema
from trainer.config.check import faults
from trainer.config.compose import apply, as_written, compose, plain
from trainer.config.keys import Keys
from trainer.config.overrides import is_sweep
from trainer.config.policy import resume_config
from trainer.config.request import Request
from trainer.config.stored import load_stored_config
from trainer.config.trust import trusted
from trainer.errors import CheckpointError, ConfigError, format_error


def resumed(request: Request, groups: Sequence[Override], path: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """The configuration a run goes on with, notes on what changes, and what is wrong.

    Args:
        request: The command line.
        groups: Its choices of options, all of which there are.
        path: A run folder or a checkpoint folder.

    Raises:
        CheckpointError: There is no run, or its configuration names code that is not trusted.
    """
    stored = load_stored_config(path)
    _check_trust(request, stored)
    found = _conflicts(request, groups, path)
    # Trust is given for one command, and never by the checkpoint itself.
    base = stored | {"resume": None, "trust": []}
    try:
        base |= _chosen(request, groups)
    except ConfigError as error:
        found += error.messages
    keys = Keys(jobs.TrainJob, request.catalogue, base)
    wrong = [keys.faults(item) for item in request.given.values]
    found += [fault for messages in wrong for fault in messages]
    changed = OmegaConf.create(base)
    found += apply(changed, [item for item, bad in zip(request.given.values, wrong, strict=True) if not bad])
    values, unresolved = plain(changed)
    found += unresolved or faults(values, Keys(jobs.TrainJob, request.catalogue, values))
    try:
        config, notes = resume_config(stored, values)
    except ConfigError as error:
        return values, [], [*found, *error.messages]
    return config, notes, found


def _check_trust(request: Request, stored: dict[str, Any]) -> None:
    given = [item.value() for item in request.given.values if item.key_or_group == "trust"]
    trust = given[-1] if given and isinstance(given[-1], list) else []
    if untrusted := trusted(stored, [str(package) for package in trust]):
        raise CheckpointError(*untrusted)


def _conflicts(request: Request, groups: Sequence[Override], path: str) -> list[str]:
    found = []
    if request.command.multirun:
        problem = "one run cannot be resumed by several jobs"
        found.append(format_error("resume", problem, "Leave out --multirun", value=path))
    if request.command.options.cfg:
        remedy = f"The run goes on with {Path(path) / 'config.yaml'}"
        found.append(format_error("--cfg", "there is nothing to compose", remedy))
    parts = schema.groups(jobs.TrainJob)
    bare = [item.key_or_group for item in groups if item.key_or_group not in parts]
    return [
        *found,
        *(format_error(group, "cannot be chosen for a run that is resumed", "Leave it out") for group in bare),
    ]


def _chosen(request: Request, groups: Sequence[Override]) -> dict[str, Any]:
    """The parts that the command line names, composed, to be compared with the stored ones."""
    parts = schema.groups(jobs.TrainJob)
    named = [item for item in groups if item.key_or_group in parts and not is_sweep(item)]
    if not named:
        return {}
    lines = [str(item.input_line) for item in named]
    config, _ = compose(request.folder, request.name, [*request.to_compose(), *lines])
    composed = as_written(config)
    return {item.key_or_group: composed[item.key_or_group] for item in named}
