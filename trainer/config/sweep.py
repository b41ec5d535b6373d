"""A sweep with a name: the jobs of a command line with several values, and the config that they share."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, ValueType
from omegaconf import DictConfig

from trainer.config import compose, schema
from trainer.config.compatibility import value_at
from trainer.config.jobs import PRESET_GROUPS
from trainer.config.keys import find, is_known
from trainer.config.overrides import CommandLine, is_sweep, parse_overrides, variants
from trainer.config.sections import SweepSection
from trainer.config.stored import MAY_CHANGE, complete_config, describe_change, differences
from trainer.distributed.environment import is_rank
from trainer.documents import SWEEP as SWEEP_SHAPE
from trainer.documents import read_document, unusable
from trainer.errors import ConfigError, format_error, install
from trainer.layout import SWEEP, SWEEPS, Document
from trainer.shapes import DocumentError

_MAX_NAME = 120
_OTHER_NAME = "Choose another sweep.name"

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
        changes: The swept keys with the job's values, as written; the config's value of a key that only other commands
            of the sweep change.
        argv: Its command line after the verb; it resumes or starts the run.
    """

    name: str
    changes: Mapping[str, str]
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Parameter:
    """The values of a key among which a search chooses.

    Attributes:
        low, high: The ends of an interval; integers if its values are; None for a list of values.
        is_log: Choose on a logarithmic scale.
        values: A list of values, as written.
    """

    low: float | None = None
    high: float | None = None
    is_log: bool = False
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Search:
    """A search over the values of swept keys, instead of a job for each combination.

    Attributes:
        num_trials: The number of jobs.
        prunes: Stop jobs whose monitored metric is behind.
        space: The values of each swept key, by the key as written.
    """

    num_trials: int
    prunes: bool
    space: Mapping[str, Parameter]


@dataclass(frozen=True)
class Sweep:
    """A sweep with a name.

    Attributes:
        folder: The folder that contains the run folders and the table.
        num_parallel: Jobs that run at the same time.
        config: The config of the command line without the swept keys.
        jobs: Its jobs; none for a search.
        search: The search that chooses the jobs, if any.
        argv: The part of the command line that all jobs share.
        earlier: The changes of the jobs of earlier commands by name, complete as in `jobs`.
    """

    folder: Path
    num_parallel: int
    config: dict[str, Any]
    jobs: tuple[SweepJob, ...]
    search: Search | None = None
    argv: tuple[str, ...] = ()
    earlier: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def trial(self, number: int, values: Mapping[str, str]) -> SweepJob:
        """Return the job of a trial of a search, given the value of each swept key as written."""
        name = f"trial-{number:04d}"
        chosen = [f"{key}={value}" for key, value in values.items()]
        changes = {key.lstrip("+"): value.strip("'\"") for key, value in values.items()}
        return SweepJob(name, changes, (*self.argv, *chosen, f"run.dir='{self.folder / name}'"))


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
    if problems := list(_problems(line, section, config)):
        raise ConfigError(*problems)
    if section["name"] is None:
        return None
    folder = SWEEPS / section["name"]
    is_search = section["trials"] is not None
    is_new = not (folder / SWEEP).is_file()
    earlier = {} if is_new or is_search else read_jobs(folder)
    keys = list(dict.fromkeys(key for changes in earlier.values() for key in changes))
    swept = _swept(line, keys) or (_fixed(line) if is_new and value_at(config, "data.folds") is None else [])
    argv = _shared_argv(line, swept)
    swept += _fold_sweep(line, config)
    composed = _shared_config(line, swept)
    base = compose.unresolved(compose.without_hydra(composed))
    if is_search:
        space = {str(item.get_key_element()): _parameter(item, line) for item in swept}
        return Sweep(folder, section["jobs"], base, (), Search(section["trials"], section["prune"], space), argv)
    keys = list(dict.fromkeys([*keys, *(item.key_or_group for item in swept)]))
    defaults = _defaults(keys, base, compose.choices_of(composed))
    earlier = {name: _completed(changes, keys, defaults) for name, changes in earlier.items()}
    jobs = tuple(_expand(line, folder, swept, argv, lambda changes: _completed(changes, keys, defaults), earlier))
    return Sweep(folder, section["jobs"], base, jobs, earlier=earlier)


def read_jobs(folder: Path) -> dict[str, Mapping[str, str]]:
    """Return the keys that each job of a sweep changes, by its name.

    Raises:
        CheckpointError: The document of the sweep cannot be read.
    """
    return jobs_of(read_document(folder / SWEEP, SWEEP_SHAPE, _OTHER_NAME), folder / SWEEP)


def jobs_of(document: Document, file: Path) -> dict[str, Mapping[str, str]]:
    """Return the keys that each job of a sweep changes, by its name, which is the name of its folder in the sweep's.

    Args:
        document: The document of the sweep.
        file: Its file, for messages.

    Raises:
        CheckpointError: A name leads out of the sweep's folder.
    """
    jobs = {job["name"]: job["changes"] for job in document["jobs"]}
    for name in jobs:
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise unusable(file, DocumentError(f"names the job {name!r}, which is no folder of the sweep"), _OTHER_NAME)
    return jobs


def _problems(line: CommandLine, section: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[str]:
    name = section["name"]
    items = (*line.overrides.groups, *line.overrides.values, *line.overrides.hydra)
    for item in items:
        if item.key_or_group.startswith("sweep.") and is_sweep(item):
            yield format_error(item.key_or_group, "has several values", "Give it one", value=item.get_value_string())
    if name is None:
        for key, default in schema.defaults(SweepSection).items():
            if section[key] != default:
                yield format_error(f"sweep.{key}", "needs a sweep with a name", "Set sweep.name", value=section[key])
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
        if item.value_type == ValueType.INTERVAL_SWEEP and section["trials"] is None:
            remedy = "List values, or set sweep.trials to search in it"
            yield format_error(key, "an interval has no list of values", remedy, value=item.get_value_string())
        if key == "seed" and is_sweep(item) and section["trials"] is not None:
            remedy = "Give it one value, and run the best settings again with several seeds"
            yield format_error(key, "a search must not choose the seed", remedy, value=item.get_value_string())
    if section["trials"] is not None:
        if find_spec("optuna") is None:
            problem = "needs the package optuna, which is not installed"
            yield format_error("sweep.trials", problem, install("optuna"))
        if value_at(config, "data.folds") is not None:
            yield format_error("sweep.trials", "a search cannot run folds", "Leave out data.folds")
        if not any(map(is_sweep, items)):
            yield format_error("sweep.trials", "there is no key to search", "Give keys several values or an interval")


def _is_own(item: Override) -> bool:
    """Return whether an override is about the sweep itself, or about what it decides for its jobs."""
    return item.key_or_group.startswith("sweep.") or item.key_or_group in ("resume", "run.dir")


def _shared_config(line: CommandLine, swept: Sequence[Override]) -> DictConfig:
    """Return the config of the command line without the swept keys, with Hydra's own."""
    left_out = {item.key_or_group for item in swept}
    choices = [str(item.input_line) for item in line.overrides.groups if item.key_or_group not in left_out]
    composed = compose.compose_with_hydra(line.folder, line.config_name, [*line.hydra_overrides(), *choices])
    # A value may belong to a swept option; it is set all the same, as the config is only compared.
    values = [item for item in line.overrides.values if item.key_or_group not in left_out]
    compose.apply_overrides(composed, [item for item in values if not is_sweep(item)])
    return composed


def _defaults(keys: Sequence[str], base: Mapping[str, Any], choices: Mapping[str, str | None]) -> dict[str, str]:
    """Return the values of keys in the shared config as a command line writes them, if it has them."""
    texts: dict[str, str] = {}
    for key in keys:
        if choices.get(key) is not None:
            texts[key] = str(choices[key])
        elif is_known(base, key) and "${" not in str(value := find(base, key)):
            texts[key] = value if isinstance(value, str) else json.dumps(value)
    return texts


def _completed(changes: Mapping[str, str], keys: Sequence[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """Return the changes of a job in the order of `keys`, with the defaults of the keys that it leaves out.

    A key stays out if an option that the job chooses may set it.
    """
    is_preset = not set(PRESET_GROUPS).isdisjoint(changes)
    known = {
        key: text
        for key, text in defaults.items()
        if not (is_preset or any(key.startswith(f"{option}.") for option in changes))
    }
    values = {**known, **changes}
    return {key: values[key] for key in keys if key in values}


def _swept(line: CommandLine, keys: Collection[str]) -> list[Override]:
    """Return the overrides with several values, or of keys that other jobs change, in the order of the command line."""
    items = [item for item in (*line.overrides.groups, *line.overrides.values) if not _is_own(item)]
    by_text = {str(item.input_line): item for item in items if is_sweep(item) or item.key_or_group in keys}
    return [by_text[text] for text in line.arguments.overrides if text in by_text]


def _fixed(line: CommandLine) -> list[Override]:
    """Return the overrides of a sweep of one job, which name the job."""
    items = [item for item in (*line.overrides.groups, *line.overrides.values) if not _is_own(item)]
    return [item for item in items if not item.is_delete()]


def _shared_argv(line: CommandLine, swept: Sequence[Override]) -> tuple[str, ...]:
    """Return the words of the command line that all jobs share."""
    left_out = {str(item.input_line) for item in (*swept, *filter(_is_own, line.overrides.values))}
    fixed = [text for text in line.arguments.overrides if text not in left_out]
    own = [f"sweep.{key}={'null' if value is None else value}" for key, value in schema.defaults(SweepSection).items()]
    flags = [flag for flag in line.arguments.flags if flag not in ("-m", "--multirun")]
    return (*flags, *fixed, "resume=auto", *own)


def _fold_sweep(line: CommandLine, config: Mapping[str, Any]) -> list[Override]:
    """Return the override that runs every fold, unless the command line names some."""
    folds, explicit = value_at(config, "data.folds"), line.overrides.keys()
    if folds is None or "data.fold" in explicit:
        return []
    return parse_overrides([f"data.fold={','.join(map(str, range(folds)))}"])[0]


def _expand(
    line: CommandLine,
    folder: Path,
    swept: Sequence[Override],
    argv: tuple[str, ...],
    complete: Callable[[Mapping[str, str]], Mapping[str, str]],
    earlier: Mapping[str, Mapping[str, str]],
) -> Iterator[SweepJob]:
    """Yield a job for each different combination of values, the last key varying fastest.

    Args:
        line: The command line.
        folder: The folder of the sweep.
        swept: The swept keys.
        argv: The words that all jobs share.
        complete: Adds to the changes of a job the values of the keys that only other jobs change.
        earlier: The complete changes of earlier jobs by name; a job with equal values has the same name.
    """
    names = {_setting(changes): name for name, changes in reversed(list(earlier.items()))}
    expanded = set[str]()
    for chosen in product(*(_values(item, line) for item in swept)):
        texts = zip(swept, chosen, strict=True)
        changes = complete({item.key_or_group: text.partition("=")[2].strip("'\"") for item, text in texts})
        name = names.setdefault(_setting(changes), job_name(changes))
        if name not in expanded:
            expanded.add(name)
            yield SweepJob(name, changes, (*argv, *chosen, f"run.dir='{folder / name}'"))


def _setting(changes: Mapping[str, str]) -> frozenset[tuple[str, object]]:
    """Return the values of a job, equal for equal numbers however they are written."""
    return frozenset((key, _number(text)) for key, text in changes.items())


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _parameter(item: Override, line: CommandLine) -> Parameter:
    value = item.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        return Parameter(value.start, value.end, "log" in value.tags)
    return Parameter(values=tuple(text.partition("=")[2] for text in _values(item, line)))


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


def changed_keys(old: dict[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a message for each key of a sweep's shared config that differs and that would change its results.

    Keys that are newer than the sweep have their defaults in it.
    """
    remedy = "Keep the old value, or choose another sweep.name"
    harmless = [key for key in MAY_CHANGE if key not in _CHANGES_RESULTS]
    return [
        format_error(key, f"differs from the sweep that is there: {describe_change(before, after)}", remedy)
        for key, before, after in differences(complete_config(old), new)
        if not any(fnmatchcase(key, pattern) for pattern in harmless)
    ]
