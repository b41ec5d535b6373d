"""The command line after the verb: flags and overrides, parsed by Hydra's own parsers and sorted by subject."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException

from trainer.config import jobs, schema
from trainer.config.groups import Groups, groups_in, own_folder, search_folder, working_folder
from trainer.errors import ConfigError, format_error

# `key=value`, `++key=value`, `~key` and their relatives in Hydra's grammar, not a text or a path such as ~/runs.
_OVERRIDE = re.compile(r"(\+{0,2}|~)\w[\w.$/@:-]*=|~\w[\w.$/@:-]*\Z")

# A word between the signs of the syntax of lists, mappings and sweeps.
_WORD = re.compile(r"[^\[\]{}:,\s][^\[\]{}:,]*")


@dataclass(frozen=True)
class Arguments:
    """The command line after the verb.

    Attributes:
        overrides: `key=value` and its other forms, as written.
        flags: Hydra's flags with their values, as written.
        options: The flags, parsed.
    """

    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    options: argparse.Namespace

    @property
    def is_sweep(self) -> bool:
        """Return whether several jobs may run (`--multirun`)."""
        return bool(self.options.multirun)

    @property
    def shows_hydra(self) -> bool:
        """Return whether Hydra shows its own state instead of running a job (`--info`, `--hydra-help`, completion)."""
        return bool(self.options.info or self.options.hydra_help or self.options.shell_completion)

    @property
    def needs_hydra(self) -> bool:
        """Return whether Hydra's own main must run: for sweeps and flags that show something or rerun a past job."""
        return self.is_sweep or self.shows_hydra or bool(self.options.cfg or self.options.experimental_rerun)


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
        given = {str(item.input_line): item for item in (*self.overrides.groups, *self.overrides.values)}
        for line, item in given.items():
            is_inner = item.key_or_group.count(".") > 1 and item.key_or_group.split(".")[0] in groups
            if is_inner and not (item.is_add() or item.is_force_add() or item.is_delete()):
                given[line] = replace(item, input_line=f"++{line}")
        return [given[text] for text in self.arguments.overrides if text in given]

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
        return path if isinstance(path, str) and path != "auto" else None


def parse_command_line(verb: str, argv: Sequence[str]) -> tuple[CommandLine, list[str]]:
    """Parse the command line after the verb; also return the problems of its syntax."""
    arguments, problems = split_arguments(argv, schema.texts(jobs.JOBS[verb]), jobs.POSITIONS.get(verb, ()))
    parsed, unreadable = parse_overrides(arguments.overrides)
    options = arguments.options
    folder = Path(options.config_path).resolve() if options.config_path else own_folder()
    extra = Path(options.config_dir).resolve() if options.config_dir else None
    if extra is not None and not extra.is_dir():
        raise ConfigError(format_error("--config-dir", "no such folder", value=options.config_dir))
    working = working_folder()
    searchpath = [entry for item in parsed for entry in _search_entries(item)]
    searchpath += [_entry(working)] if working else []
    groups = groups_in([folder, extra, *map(search_folder, searchpath)])
    kept = [item for item in parsed if item.key_or_group != "hydra.searchpath"]
    overrides = _sorted_by_subject(verb, kept, groups)
    return CommandLine(verb, arguments, overrides, folder, tuple(searchpath), groups), [*problems, *unreadable]


def _search_entries(override: Override) -> list[str]:
    value = override.value() if override.key_or_group == "hydra.searchpath" else None
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _sorted_by_subject(verb: str, parsed: Sequence[Override], groups: Groups) -> OverrideGroups:
    job_type = jobs.JOBS[verb]
    names = set(groups.names())
    if not issubclass(job_type, jobs.TrainJob):
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


def split_arguments(
    argv: Sequence[str], texts: Collection[str] = (), positions: Sequence[str] = ()
) -> tuple[Arguments, list[str]]:
    """Split a command line into flags and overrides, in any order; also return the problems of the flags.

    Args:
        argv: The command line after the verb.
        texts: Keys whose values are taken verbatim.
        positions: Keys whose values may be given without their names, in this order.
    """
    parser = get_args_parser()
    known = sorted(flag for action in parser._actions for flag in action.option_strings)

    def fail(message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}.")

    parser.error = fail  # type: ignore[method-assign]  # argparse would print its own usage and exit
    options, unknown = parser.parse_known_intermixed_args(list(argv))
    # An override after an unknown flag is left over as well.
    overrides = [*options.overrides, *(text for text in unknown if not text.startswith("-"))]
    rest = list(argv)
    for text in (*options.overrides, *unknown):
        rest.remove(text)
    problems = [_unknown_flag(text, known) for text in unknown if text.startswith("-")]
    if positions:
        overrides, surplus = _name_values(overrides, positions)
        problems += surplus
    written = [as_text(text) if text.partition("=")[0] in texts else quoted(text) for text in overrides]
    return Arguments(tuple(written), tuple(rest), options), problems


def _name_values(texts: Sequence[str], positions: Sequence[str]) -> tuple[list[str], list[str]]:
    """Write the values that were given without a key as `key=value`; also return the problems with them.

    A single value for a verb that takes a run and a text is the run if it is a folder, else the text.
    """
    named = [text for text in texts if _OVERRIDE.match(text)]
    values = [text for text in texts if not _OVERRIDE.match(text)]
    present = {text.partition("=")[0] for text in named}
    keys = [key for key in positions if key not in present]
    if keys[:1] == ["run"] and keys[-1] in ("input", "prompt") and len(values) == 1:
        keys = keys[:1] if Path(values[0]).expanduser().is_dir() else keys[1:]
    if keys[-1:] == ["beside"]:
        keys += ["beside"] * (len(values) - len(keys))
    remedy = f"This verb takes {' and '.join(positions)} without a name, once"
    problems = [format_error(value, "one value too many", remedy) for value in values[len(keys) :]]
    lines: dict[str, list[str]] = {}
    for key, value in zip(keys, values, strict=False):
        # An empty key makes a text of the value alone.
        lines.setdefault(key, []).append(as_text(f"={value}")[1:])
    pairs = [f"{key}=[{','.join(texts)}]" if key == "beside" else f"{key}={texts[0]}" for key, texts in lines.items()]
    return [*named, *pairs], problems


def quoted(text: str) -> str:
    """Put the words beyond ASCII of an override in quotes, as Hydra reads them only so and a shell removes quotes.

    A value that has quotes already stays as it is.
    """
    key, equals, value = text.partition("=")
    if value.isascii() or "'" in value or '"' in value:
        return text
    return key + equals + _WORD.sub(lambda word: word[0] if word[0].isascii() else f"'{word[0]}'", value)


def as_text(text: str) -> str:
    """Turn the value of an override into one quoted text without interpolations; `null` and quoted values stay."""
    key, equals, value = text.partition("=")
    if not value or value == "null" or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return text
    # A backslash has a meaning only before a quote, the end or an interpolation.
    escaped = re.sub(r"(\\*)(\$\{|'|\Z)", lambda match: 2 * match[1] + (match[2] and "\\" + match[2]), value)
    return f"{key}{equals}'{escaped}'"


def _unknown_flag(flag: str, known: Sequence[str]) -> str:
    near = get_close_matches(flag.partition("=")[0], known, n=1)
    return format_error(flag, "unknown flag", f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}")


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
            parsed.append(override)
        except HydraException as error:
            problems.append(_unreadable(text, error.__cause__))
    return parsed, problems


def _unreadable(text: str, cause: object) -> str:
    if text.find("=") < 1 and not text.startswith("~"):
        return format_error(text, "is neither an override nor a flag", "Write overrides as key=value, without spaces")
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
    return f"{message}\n    {text}\n    {' ' * position}^"


def is_sweep(override: Override) -> bool:
    """Return whether an override gives several values."""
    return bool(override.is_sweep_override())


def variants(override: Override, groups: Groups) -> list[str]:
    """Return an override once for each of its values; empty if they cannot be listed (ranges, intervals)."""
    if not is_sweep(override):
        return [str(override.input_line)]
    key = override.get_key_element()
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        glob = override.value()
        assert isinstance(glob, Glob)
        return [f"{key}={option}" for option in glob.filter(groups.options(override.key_or_group))]
    if override.value_type in (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP):
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return []


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
    near = get_close_matches(str(name), options, n=1, cutoff=0.6)
    remedy = f"Did you mean {group}={near[0]}?" if near else f"Known: {', '.join(options)}"
    return [format_error(group, "unknown option", remedy, value=name)]
