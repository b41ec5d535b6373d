"""What a command line asks for: its overrides by what they are about, and where configurations lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra.core.override_parser.types import Override

from trainer.config import jobs, overrides, schema
from trainer.config.catalogue import Catalogue, catalogue, own_folder, search_folder, working_folder
from trainer.config.overrides import Command, is_sweep
from trainer.errors import ConfigError, format_error


@dataclass(frozen=True)
class Given:
    """Overrides by what they are about.

    Attributes:
        groups: Choices of options.
        values: Values of keys.
        hydra: Hydra's own configuration, but its search path.
        stored: Values of keys of a run's own configuration (`eval`, `export`, `predict`, `verify`).
    """

    groups: tuple[Override, ...]
    values: tuple[Override, ...]
    hydra: tuple[Override, ...]
    stored: tuple[Override, ...]

    def paths(self) -> frozenset[str]:
        """The full keys that get a value."""
        found = {item.key_or_group for item in self.values}
        for item in self.values:
            value = item.value()
            found |= {f"{item.key_or_group}.{key}" for key in value} if isinstance(value, dict) else set()
        return frozenset(found)


@dataclass(frozen=True)
class Request:
    """A command line.

    Attributes:
        verb: The verb.
        command: Its flags and overrides as written.
        given: Its overrides.
        folder: The folder of the primary configuration.
        searchpath: Further entries of Hydra's search path: the user's, and the working directory's `conf`.
        catalogue: All configuration folders.
    """

    verb: str
    command: Command
    given: Given
    folder: Path
    searchpath: tuple[str, ...]
    catalogue: Catalogue

    @property
    def kind(self) -> jobs.JobType:
        """The schema of the verb."""
        return jobs.JOBS[self.verb]

    @property
    def name(self) -> str:
        """The primary configuration."""
        return str(self.command.options.config_name or self.verb).removesuffix(".yaml")

    def to_compose(self) -> list[str]:
        """The overrides of Hydra's own configuration for composing here, without its flags."""
        folder = self.command.options.config_dir
        return [*_lines(self.given.hydra), *_search([*([_entry(Path(folder))] if folder else []), *self.searchpath])]

    def to_hydra(self) -> list[str]:
        """The command line for Hydra, in the order it was given: a sweep's jobs follow it."""
        kept = {*_lines(self.given.hydra), *_lines(self.given.groups), *_lines(self.given.values)}
        lines = [f"++{text}" if text in self._inner() else text for text in self.command.overrides if text in kept]
        return [*lines, *_search(self.searchpath), *self.command.flags]

    def _inner(self) -> set[str]:
        """Values inside a mapping of a part: Hydra takes a key that is new there with ++ alone; ours are checked."""
        groups = schema.groups(self.kind)
        return {
            str(item.input_line)
            for item in self.given.values
            if item.key_or_group.count(".") > 1 and item.key_or_group.split(".")[0] in groups
            if not (item.is_add() or item.is_force_add() or item.is_delete())
        }


def read_request(verb: str, argv: Sequence[str]) -> tuple[Request, list[str]]:
    """The request of a command line, and what is wrong with the way it is written."""
    command, faults = overrides.split(argv, schema.texts(jobs.JOBS[verb]))
    parsed, unreadable = overrides.parse(command.overrides)
    options = command.options
    folder = Path(options.config_path).resolve() if options.config_path else own_folder()
    extra = Path(options.config_dir).resolve() if options.config_dir else None
    if extra is not None and not extra.is_dir():
        raise ConfigError(format_error("--config-dir", "there is no such folder", value=options.config_dir))
    own = working_folder()
    search = [entry for item in parsed for entry in _search_entries(item)]
    search += [_entry(own)] if own else []
    folders = catalogue([folder, extra, *map(search_folder, search)])
    given = _sorted_out(verb, [item for item in parsed if item.key_or_group != "hydra.searchpath"], folders)
    return Request(verb, command, given, folder, tuple(search), folders), [*faults, *unreadable]


def _search_entries(override: Override) -> list[str]:
    value = override.value() if override.key_or_group == "hydra.searchpath" else None
    return [str(entry) for entry in value] if isinstance(value, list) else []


def _sorted_out(verb: str, parsed: Sequence[Override], folders: Catalogue) -> Given:
    named = set(folders.groups())
    if not issubclass(jobs.JOBS[verb], jobs.TrainJob):
        named &= set(schema.groups(jobs.JOBS[verb]))
    sorted_out: dict[str, list[Override]] = {"groups": [], "values": [], "hydra": [], "stored": []}
    for item in parsed:
        key = item.key_or_group
        top, _, inner = key.partition(".")
        if key.startswith(("hydra.", "hydra/")):
            sorted_out["hydra"].append(item)
        elif inner and top in jobs.stored_sections(jobs.JOBS[verb]) and not is_sweep(item):
            sorted_out["stored"].append(item)
        elif key in named and not isinstance(item.value(), dict):
            sorted_out["groups"].append(item)
        else:
            sorted_out["values"].append(item)
    return Given(**{name: tuple(items) for name, items in sorted_out.items()})


def _lines(items: Sequence[Override]) -> list[str]:
    return [str(item.input_line) for item in items]


def _entry(folder: Path) -> str:
    return f"file://{folder.resolve()}"


def _search(entries: Sequence[str]) -> list[str]:
    return [f"hydra.searchpath=[{','.join(map(repr, entries))}]"] if entries else []
