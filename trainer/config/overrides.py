"""The command line after the verb: its overrides, parsed by Hydra's own parser and sorted by subject."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override, ValueType
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config import jobs, schema
from trainer.config.arguments import Arguments, split_arguments
from trainer.config.foreign_names import foreign_value
from trainer.config.groups import Groups, groups_in, own_folder, search_folder, size_problem, working_folder
from trainer.constraints.values import character_problems
from trainer.display import displayable, mask_secrets
from trainer.errors import ConfigError, format_error, install, raise_if_any
from trainer.layout import expand_home

_HYDRA_MAPPINGS = ("hydra", "hydra.launcher", "hydra.sweeper", "hydra.env")
_HYDRA_DEFAULTS = ("config.yaml", "launcher/basic.yaml", "sweeper/basic.yaml")
"""Files of Hydra's own that a folder of the search path can replace; its other defaults come first."""
_HYDRA_PLUGINS = ("hydra.launcher._target_", "hydra.sweeper._target_")

_DATA_SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".parquet", ".arrow", ".txt", ".conll")
_MAX_NAME = 256
"""No name of an option is this long, as no name of a file is."""


@dataclass(frozen=True)
class OverrideGroups:
    """Overrides by subject.

    Attributes:
        groups: Choices of options.
        values: Values of keys.
        hydra: Hydra's own config, except its search path.
        stored: Values of keys of a run's config (`eval`, `export`, `predict`, `verify`).
    """

    groups: tuple[Override, ...]
    values: tuple[Override, ...]
    hydra: tuple[Override, ...]
    stored: tuple[Override, ...]

    def keys(self) -> frozenset[str]:
        """Return the full keys that get a value."""
        names = {item.key_or_group for item in self.values}
        for item in self.values:
            value = item.value()
            names |= {f"{item.key_or_group}.{key}" for key in value} if isinstance(value, dict) else set()
        return frozenset(names)

    def stored_pairs(self) -> tuple[tuple[str, Any], ...]:
        """Return the full keys and values that replace values of a run's config."""
        return tuple((item.key_or_group, item.value()) for item in self.stored)


@dataclass(frozen=True)
class CommandLine:
    """A parsed command line.

    Attributes:
        verb: The verb.
        arguments: Its flags and overrides as written.
        overrides: Its overrides by subject.
        folder: The folder of the primary config.
        searchpath: More entries of Hydra's search path: the user's, and the working directory's `conf`.
        groups: The groups of all config folders.
    """

    verb: str
    arguments: Arguments
    overrides: OverrideGroups
    folder: Path
    searchpath: tuple[str, ...]
    groups: Groups

    @property
    def job_type(self) -> jobs.JobType:
        """The job type of the verb."""
        return jobs.JOBS[self.verb]

    @property
    def config_name(self) -> str:
        """The name of the primary config."""
        return str(self.arguments.options.config_name or self.verb).removesuffix(".yaml")

    def hydra_overrides(self) -> list[str]:
        """Return the overrides of Hydra's own config, including the search path."""
        folder = self.arguments.options.config_dir
        extra = [_entry(Path(folder))] if folder else []
        return [*_lines(self.overrides.hydra), *_searchpath_override([*extra, *self.searchpath])]

    def task_overrides(self) -> list[Override]:
        """Return the choices of options and the values of keys in the order of the command line, for Hydra.

        Hydra takes a new key in a mapping of a part only with `++`; such keys are checked here.
        """
        groups = schema.groups(self.job_type)
        by_line = {str(item.input_line): item for item in (*self.overrides.groups, *self.overrides.values)}
        for line, item in by_line.items():
            is_inner = item.key_or_group.count(".") > 1 and item.key_or_group.split(".")[0] in groups
            if is_inner and not (item.is_add() or item.is_force_add() or item.is_delete()):
                by_line[line] = replace(item, input_line=f"++{line}")
        return [by_line[text] for text in self.arguments.overrides if text in by_line]

    def hydra_argv(self) -> list[str]:
        """Return the command line for Hydra's own main."""
        hydra = _lines(self.overrides.hydra)
        return [*hydra, *_lines(self.task_overrides()), *_searchpath_override(self.searchpath), *self.arguments.flags]

    def resume_path(self) -> str | None:
        """Return the run or checkpoint folder that `resume=PATH` names."""
        values = [
            item.value() for item in self.overrides.values if item.key_or_group == "resume" and not is_sweep(item)
        ]
        path = values[-1] if values and self.verb == "train" else None
        return expand_home(path) if isinstance(path, str) and path != "auto" else None


def parse_command_line(verb: str, argv: Sequence[str]) -> tuple[CommandLine, list[str]]:
    """Parse the command line after the verb; also return the problems of its syntax."""
    for text in argv:
        key, equals, value = text.partition("=")
        raise_if_any(*character_problems(key, key), *character_problems(value if equals else key, key))
    job_type = jobs.JOBS[verb]
    keys = schema.keys(job_type)
    arguments, problems = split_arguments(argv, schema.texts(job_type), jobs.POSITIONS.get(verb, ()), keys)
    parsed, unreadable = parse_overrides(arguments.overrides)
    options = arguments.options
    folder = Path(options.config_path).resolve() if options.config_path else own_folder()
    extra = Path(options.config_dir).resolve() if options.config_dir else None
    if extra is not None and not os.path.isdir(extra):
        raise ConfigError(format_error("--config-dir", "no such folder", value=options.config_dir))
    working = working_folder()
    searchpath = [entry for item in parsed for entry in _search_entries(item)]
    problems += _replaced_settings(working) if working else []
    searchpath += [_entry(working)] if working else []
    groups = groups_in([folder, extra, *map(search_folder, searchpath)])
    wrong = {str(item.input_line): problem for item in parsed if (problem := _hydra_problem(item))}
    problems += wrong.values()
    kept = [item for item in parsed if item.key_or_group != "hydra.searchpath" and item.input_line not in wrong]
    overrides = _sorted_by_subject(verb, kept, groups)
    return CommandLine(verb, arguments, overrides, folder, tuple(searchpath), groups), [*problems, *unreadable]


def _hydra_problem(override: Override) -> str | None:
    """Return the problem of a value for Hydra's own config that Hydra would meet with a traceback, or ignore."""
    key = override.key_or_group
    if override.is_delete() or is_sweep(override):
        return None
    value = override.value()
    items = value if isinstance(value, list) else [value]
    is_name = (item is None or (isinstance(item, str) and len(item) < _MAX_NAME) for item in items)
    if key.startswith("hydra/") and not all(is_name):
        return format_error(key, "must be the name of an option", value=value)
    if key == "hydra/launcher" and str(value).startswith("submitit") and not _has_plugin("hydra_submitit_launcher"):
        problem = "needs the package hydra-submitit-launcher, which is not installed"
        return format_error(key, problem, install("slurm"), value=value)
    if key == "hydra.searchpath" and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return format_error(key, "must be a list of folders", value=value)
    if key == "hydra.verbose" and not (isinstance(value, bool) or all(isinstance(item, str) for item in items)):
        return format_error(key, "must be true, false or names of loggers", value=value)
    if key in _HYDRA_MAPPINGS and not isinstance(value, dict):
        return format_error(key, "must be a mapping", value=value)
    if key in _HYDRA_PLUGINS and not str(value).startswith(("hydra_plugins.", "hydra._internal.core_plugins.")):
        return format_error(key, "must be a class of a plugin of Hydra", value=value)
    if key in ("hydra.run.dir", "hydra.sweep.dir") and isinstance(value, str) and not _can_be_folder(value):
        return format_error(key, "cannot be a folder, as a file is in its place", value=value)
    return None


def _has_plugin(name: str) -> bool:
    """Return whether a plugin of Hydra is installed."""
    return find_spec("hydra_plugins") is not None and find_spec(f"hydra_plugins.{name}") is not None


def _replaced_settings(folder: Path) -> list[str]:
    """Return the problems of the working directory's `conf` with files that would take the place of Hydra's own.

    They would apply, and could run code, although nobody has chosen an option of the folder.
    """
    files = [folder / "hydra" / name for name in _HYDRA_DEFAULTS]
    problem, remedy = "replaces a part of Hydra in every command", "Rename it, and choose it by its new name"
    return [format_error(f"conf/{file.relative_to(folder)}", problem, remedy) for file in files if file.exists()]


def _can_be_folder(path: str) -> bool:
    """Return whether the lowest existing part of a path is a folder."""
    while path and not os.path.lexists(path):
        path = os.path.dirname(path.rstrip("/"))
    return not path or os.path.isdir(path)


def _search_entries(override: Override) -> list[str]:
    value = override.value() if override.key_or_group == "hydra.searchpath" else None
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _sorted_by_subject(verb: str, parsed: Sequence[Override], groups: Groups) -> OverrideGroups:
    job_type = jobs.JOBS[verb]
    names = set(groups.names())
    if issubclass(job_type, jobs.TrainJob):  # a user's config may have groups of its own, which are no parts
        names -= {group for each in jobs.JOBS.values() for group in schema.groups(each)} - set(schema.groups(job_type))
    else:
        names &= set(schema.groups(job_type))
    subjects: dict[str, list[Override]] = {"groups": [], "values": [], "hydra": [], "stored": []}
    for item in parsed:
        key = item.key_or_group
        top, _, inner = key.partition(".")
        if key.startswith(("hydra.", "hydra/")):
            subjects["hydra"].append(item)
        elif inner and top in jobs.stored_sections(job_type) and not is_sweep(item):
            subjects["stored"].append(item)
        elif key in names and not isinstance(item.value(), dict):
            subjects["groups"].append(item)
        else:
            subjects["values"].append(item)
    return OverrideGroups(**{name: tuple(items) for name, items in subjects.items()})


def _lines(items: Sequence[Override]) -> list[str]:
    return [str(item.input_line) for item in items]


def _entry(folder: Path) -> str:
    return f"file://{folder.resolve()}"


def _searchpath_override(entries: Sequence[str]) -> list[str]:
    return [f"hydra.searchpath=[{','.join(map(repr, entries))}]"] if entries else []


def _likely_meaning(group: str, name: str, known: str) -> str:
    """Return what to do with a file of data or a model of transformers in the place of an option; may be empty."""
    if group == "data" and (_is_like_a_path(name) or "." in name):
        return f"Let trainer write the job for a file or folder: {_init_command(name)}"
    if group == "experiment":
        return f"Known: {known}. To write one for your data: trainer init my.csv"
    if group == "model" and (_is_like_a_path(name) or "-" in name):
        return f"For a folder or a hub name of transformers, set model=pretrained model.path={shlex.quote(name)}"
    return ""


def _is_like_a_path(text: str) -> bool:
    return "/" in text or os.path.exists(text)


def _init_command(path: str) -> str:
    return f"trainer init {shlex.quote(path)}"


def parse_overrides(texts: Sequence[str]) -> tuple[list[Override], list[str]]:
    """Parse overrides; also return a message that marks the position for each one that cannot be parsed."""
    parser = OverridesParser.create()
    parsed: list[Override] = []
    problems: list[str] = []
    for text in texts:
        try:
            override = parser.parse_override(text)
            if not override.key_or_group:
                raise HydraException
            if problem := _value_problem(override):
                problems.append(problem)
            else:
                parsed.append(override)
        except HydraException as error:
            problems.append(_unreadable(text, error.__cause__))
        except RecursionError:
            problems.append(format_error(text.partition("=")[0], "is nested too deeply", "Write it in fewer levels"))
        except (ValueError, OverflowError) as error:
            reason = str(error).partition(";")[0]  # the rest names a setting of Python
            problems.append(format_error(text.partition("=")[0], f"cannot be read ({reason})", value=text))
    return parsed, problems


def _unreadable(text: str, cause: object) -> str:
    if text.find("=") < 1 and not text.startswith("~"):
        remedy = "Write overrides as key=value, without spaces"
        if os.path.exists(text) or Path(text).suffix in _DATA_SUFFIXES:
            remedy += f". To train on your data, write its job first: {_init_command(text)}"
        return format_error(text, "is neither an override nor a flag", remedy)
    token = getattr(cause, "offendingToken", None)
    position: int = next(
        (
            offset
            for offset in (getattr(cause, "startIndex", None), getattr(token, "start", None))
            if offset is not None
        ),
        len(text),
    )
    message = format_error(
        text, "syntax error at the mark", "Close every bracket, and quote text with special characters: 'key=\"a, b\"'"
    )
    if mask_secrets(text) != text:
        return message
    # The window around the mark is what a line of the screen can show.
    before, after = displayable(text[max(0, position - 60) : position]), displayable(text[position : position + 60])
    return f"{message}\n    {before}{after}\n    {' ' * len(before)}^"


def _value_problem(override: Override) -> str | None:
    """Return the problem of a value that Hydra parses and that it cannot use."""
    key = override.key_or_group
    if override.value_type in (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP):
        try:
            list(override.sweep_string_iterator())
        except (TypeError, ValueError, OmegaConfBaseException) as error:
            reason = str(error).splitlines()[0]
            return format_error(key, f"cannot be read ({reason})", value=override.get_value_string())
    try:
        OmegaConf.create([override.input_line])  # as Hydra records it
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        return format_error(key, f"has an interpolation that cannot be read ({reason})", value=override.input_line)
    problem = None if is_sweep(override) else size_problem(override.value())
    return format_error(key, problem, "Write it in fewer levels and values") if problem else None


def is_sweep(override: Override) -> bool:
    """Return whether an override gives several values."""
    return bool(override.is_sweep_override())


def variants(override: Override, groups: Groups) -> list[str]:
    """Return an override once for each of its values; with the middle of an interval, and not at all for a range."""
    if not is_sweep(override):
        return [str(override.input_line)]
    key = override.get_key_element()
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        glob = override.value()
        assert isinstance(glob, Glob)
        return [f"{key}={option}" for option in glob.filter(groups.options(override.key_or_group))]
    if override.value_type in (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP):
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    value = override.value()
    if not isinstance(value, IntervalSweep) or value.start is None or value.end is None:
        return []
    is_whole = isinstance(value.start, int) and isinstance(value.end, int)
    middle = (value.start + value.end) / 2
    return [f"{key}={int(middle) if is_whole else middle}"]


def validate_choice(override: Override, job_type: type, groups: Groups, chosen: Sequence[str]) -> list[str]:
    """Return the problems of the choice of an option. `chosen` are the groups that have an option by default."""
    group = override.key_or_group
    if override.is_delete():
        required = group in schema.required_groups(job_type)
        return [format_error(group, "cannot be deleted", f"Choose one of {groups.listed(group)}")] if required else []
    if override.package is None and group in chosen and (override.is_add() or override.is_force_add()):
        return [format_error(group, "already exists", f"Leave out the +: {group}={override.get_value_string()}")]
    names: list[object] = []
    for text in variants(override, groups):
        value = text.partition("=")[2].strip("'\"") if is_sweep(override) else override.value()
        names += value if isinstance(value, list) else [value]
    if is_sweep(override) and not names:
        remedy = f"Known: {groups.listed(group)}"
        return [format_error(group, "matches no option", remedy, value=override.get_value_string())]
    return [problem for name in names for problem in _validate_option(group, name, job_type, groups)]


def _validate_option(group: str, name: object, job_type: type, groups: Groups) -> list[str]:
    options = groups.options(group)
    if isinstance(name, str) and name.removesuffix(".yaml") in options:
        return []
    if name is None:
        required = group in schema.required_groups(job_type)
        remedy = f"Choose one of {', '.join(options)}" if required else f"Delete it with ~{group}"
        if group == "export":
            remedy = "To write no artifacts, set export.formats=[]"
        return [format_error(group, "must be the name of an option", remedy, value=None)]
    here = foreign_value(group, name)
    near = [here] if here in options else get_close_matches(str(name), options, n=1, cutoff=0.6)
    remedy = f"Did you mean {group}={near[0]}?" if near else f"Known: {', '.join(options)}"
    if not near and isinstance(name, str) and (likely := _likely_meaning(group, name, ", ".join(options))):
        remedy = likely
    return [format_error(group, "unknown option", remedy, value=name)]
