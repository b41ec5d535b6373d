"""A sweep with a name: the jobs of a command line with several values, and the config that they share."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override, ValueType

from trainer.config import compose
from trainer.config.overrides import CommandLine, is_sweep, variants
from trainer.config.stored import MAY_CHANGE, describe_change, differences
from trainer.errors import ConfigError, format_error
from trainer.layout import SWEEPS
from trainer.rank_environment import is_rank

_MAX_NAME = 120

_CHANGES_RESULTS = (
    "train.duration",
    "train.eval_every",
    "train.patience",
    "checkpoint.*",
    "compile",
    "deterministic",
    "export.*",
)
"""Keys that may change when a run is resumed, but not between the jobs of a sweep."""


@dataclass(frozen=True)
class SweepJob:
    """A job of a sweep.

    Attributes:
        name: The name of its run folder in the folder of the sweep.
        changes: The swept keys with the job's values, as written.
        argv: Its command line after the verb; it resumes or starts the run.
    """

    name: str
    changes: Mapping[str, str]
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep with a name.

    Attributes:
        folder: The folder that contains the run folders and the table.
        num_parallel: Jobs that run at the same time.
        config: The config of the command line without the swept keys.
        jobs: Its jobs.
    """

    folder: Path
    num_parallel: int
    config: dict[str, Any]
    jobs: tuple[SweepJob, ...]


def find_sweep(line: CommandLine, config: Mapping[str, Any]) -> Sweep | None:
    """Return the sweep that a command line asks for; None without a name for it.

    Args:
        line: The command line, checked.
        config: The config of its first job.

    Raises:
        ConfigError: The keys of the sweep are wrong.
    """
    section = config.get("sweep")
    if not isinstance(section, Mapping):  # the verb trains nothing
        return None
    if problems := list(_problems(line, section)):
        raise ConfigError(*problems)
    if section["name"] is None:
        return None
    folder = SWEEPS / section["name"]
    return Sweep(folder, section["jobs"], _shared_config(line), tuple(_expand(line, folder)))


def _problems(line: CommandLine, section: Mapping[str, Any]) -> Iterator[str]:
    name = section["name"]
    items = (*line.overrides.groups, *line.overrides.values, *line.overrides.hydra)
    for item in items:
        if item.key_or_group.startswith("sweep.") and is_sweep(item):
            yield format_error(item.key_or_group, "has several values", "Give it one", value=item.get_value_string())
    if name is None:
        if section["jobs"] != 1:
            yield format_error("sweep.jobs", "needs a sweep with a name", "Set sweep.name", value=section["jobs"])
        return
    if line.verb != "train" or not line.arguments.is_sweep:
        yield format_error("sweep.name", "needs a sweep", "Use trainer train with --multirun (-m)", value=name)
    if is_rank():
        remedy = "Start trainer itself, and set devices to use several devices for each job"
        yield format_error("sweep.name", "this process is one of several of one job", remedy, value=name)
    for item in items:
        key = item.key_or_group
        if key == "run.dir" or (key == "resume" and is_sweep(item)):
            problem = "each job of a sweep has its own folder"
            yield format_error(key, problem, "Leave it out", value=item.get_value_string())
        if key in ("hydra/launcher", "hydra/sweeper") or key.startswith(("hydra.launcher", "hydra.sweep")):
            remedy = "Leave it out, or leave out sweep.name to let Hydra run the sweep"
            yield format_error(key, "has no effect on a sweep with a name", remedy)
        if item.value_type == ValueType.INTERVAL_SWEEP:
            remedy = "List values, such as 1e-4,1e-3"
            yield format_error(key, "an interval has no list of values", remedy, value=item.get_value_string())


def _is_own(item: Override) -> bool:
    """Return whether an override is about the sweep itself, or about what it decides for its jobs."""
    return item.key_or_group.startswith("sweep.") or item.key_or_group in ("resume", "run.dir")


def _shared_config(line: CommandLine) -> dict[str, Any]:
    fixed = [item for item in line.overrides.groups if not is_sweep(item)]
    choices = [str(item.input_line) for item in fixed]
    composed = compose.compose_with_hydra(line.folder, line.config_name, [*line.hydra_overrides(), *choices])
    # A value may belong to a swept option; it is set all the same, as the config is only compared.
    compose.apply_overrides(composed, [item for item in line.overrides.values if not is_sweep(item)])
    return compose.unresolved(compose.without_hydra(composed))


def _expand(line: CommandLine, folder: Path) -> Iterator[SweepJob]:
    """Yield a job for each combination of values, the last key varying fastest."""
    items = [item for item in (*line.overrides.groups, *line.overrides.values) if not _is_own(item)]
    by_text = {str(item.input_line): item for item in items}
    in_order = [by_text[text] for text in line.arguments.overrides if text in by_text]
    swept = [item for item in in_order if is_sweep(item)]
    left_out = {str(item.input_line) for item in (*swept, *filter(_is_own, line.overrides.values))}
    fixed = [text for text in line.arguments.overrides if text not in left_out]
    flags = [flag for flag in line.arguments.flags if flag not in ("-m", "--multirun")]
    for chosen in product(*(_values(item, line) for item in swept)):
        changes = {
            item.key_or_group: text.partition("=")[2].strip("'\"") for item, text in zip(swept, chosen, strict=True)
        }
        name = job_name(changes)
        fixed_keys = ["resume=auto", f"run.dir='{folder / name}'", "sweep.name=null", "sweep.jobs=1"]
        yield SweepJob(name, changes, (*fixed, *chosen, *fixed_keys, *flags))


def _values(item: Override, line: CommandLine) -> list[str]:
    if item.value_type == ValueType.RANGE_SWEEP:
        return [f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()]
    return variants(item, line.groups)


def job_name(changes: Mapping[str, str]) -> str:
    """Return the name of a job's folder: the swept keys and values, with signs that no shell and no YAML interprets."""
    written = ",".join(f"{key}={value}" for key, value in changes.items())
    name = "_".join(f"{key}-{value}" for key, value in changes.items()) or "job"
    plain = re.sub(r"[^A-Za-z0-9_.+-]+", "-", name).strip(".")
    if plain != name or len(name) > _MAX_NAME:
        plain = f"{plain[:_MAX_NAME]}-{zlib.crc32(written.encode()):08x}"
    return plain


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a message for each key of a sweep's shared config that differs and that would change its results."""
    remedy = "Keep the old value, or choose another sweep.name"
    harmless = [key for key in MAY_CHANGE if key not in _CHANGES_RESULTS]
    return [
        format_error(key, f"differs from the sweep that is there: {describe_change(before, after)}", remedy)
        for key, before, after in differences(old, new)
        if not any(fnmatchcase(key, pattern) for pattern in harmless)
    ]
