"""The groups, options and keys that exist, and the messages about unknown ones with what was probably meant."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from trainer.config import jobs, schema
from trainer.config.foreign_names import as_text, foreign_name
from trainer.documents import flatten
from trainer.errors import ConfigError, format_error

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override  # help is printed without loading Hydra

PACKAGE = Path(__file__).resolve().parents[1]
OWN = f"{PACKAGE.name}."
"""The beginning of the dotted names of this package."""

HYDRA_KEYS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_", "_args_"})
_MAX_DEPTH = 40
"""Lists and mappings of a config may be nested this deep."""

_MAX_VALUES = 100_000
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ABSENT: Any = object()


def own_folder() -> Path:
    """Return the config folder of this project: inside the installed package, or next to it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def working_folder() -> Path | None:
    """Return the `conf` of the working directory, unless it is this project's own."""
    folder = Path.cwd() / "conf"
    return folder if folder.is_dir() and folder.resolve() != own_folder().resolve() else None


def is_local(package: str) -> bool:
    """Return whether a package is in the working directory and not installed, so that it is imported from there."""
    here = Path.cwd()
    if not ((here / f"{package}.py").is_file() or (here / package).is_dir()) or package in sys.stdlib_module_names:
        return False
    elsewhere = [entry for entry in sys.path if Path(entry or ".").absolute() != here]
    return all(finder.find_spec(package, elsewhere) is None for finder in sys.meta_path)


def make_importable(packages: Iterable[str]) -> None:
    """Let Python import from the working directory, if one of these packages is there; what is installed goes first.

    Otherwise nothing is imported from there: libraries try to import many optional packages, and the working directory
    may be the folder of a stranger's run.
    """
    here = str(Path.cwd())
    if here not in sys.path and any(map(is_local, packages)):
        sys.path.append(here)


def search_folder(entry: str) -> Path | None:
    """Return the folder of an entry of Hydra's search path (`file://...`, `pkg://...` or a path), if it has one."""
    if entry.startswith("pkg://"):
        package, *rest = entry.removeprefix("pkg://").replace("/", ".").split(".")
        if is_local(package):
            return Path.cwd().joinpath(package, *rest)
        spec = find_spec(package)
        locations = spec.submodule_search_locations if spec else None
        return Path(next(iter(locations))).joinpath(*rest) if locations else None
    return Path(entry.removeprefix("file://"))


@dataclass(frozen=True)
class Groups:
    """The groups of several config folders; earlier folders take precedence."""

    folders: tuple[Path, ...]

    def names(self) -> list[str]:
        """Return every group with an option, nested ones as `model/backbone`, without Hydra's own."""
        names = {
            file.parent.relative_to(folder).as_posix()
            for folder in self.folders
            for file in folder.rglob("*.yaml")
            if file.parent != folder
        }
        return sorted(group for group in names if group.split("/")[0] != "hydra")

    def options(self, group: str) -> list[str]:
        """Return the options of a group."""
        return sorted({file.stem for folder in self.folders for file in (folder / group).glob("*.yaml")})

    def listed(self, group: str) -> str:
        """Return the options of a group, joined by commas."""
        return ", ".join(self.options(group))

    def file(self, group: str, option: str) -> Path | None:
        """Return the file of an option."""
        files = (folder / group / f"{option}.yaml" for folder in self.folders)
        return next((file for file in files if os.path.isfile(file)), None)

    def content(self, group: str, option: str) -> dict[str, Any]:
        """Return the keys of an option without its defaults list; empty if there is no such option."""
        file = self.file(group, option)
        content = _content(file) if file else {}
        # An option that also chooses other groups is written for the whole config (`# @package _global_`).
        own = content.get(group)
        return own if isinstance(own, dict) and "_target_" in own else content

    def problems(self, group: str, option: object) -> list[str]:
        """Return the problem of the file of an option if it cannot be read."""
        try:
            self.content(group, option if isinstance(option, str) else "")
        except ConfigError as error:
            return list(error.messages)
        return []

    def defaults(self, name: str) -> list[Any]:
        """Return the defaults list of a primary config, with the lists of the configs in it."""
        files = (folder / f"{name}.yaml" for folder in self.folders)
        file = next((file for file in files if os.path.isfile(file)), None)
        listed = list(_loaded(file).get("defaults", [])) if file else []
        return [inner for item in listed for inner in (self.defaults(item) if isinstance(item, str) else ()) or [item]]

    def option_of(self, group: str, target: str) -> str | None:
        """Return the option of a group that makes `target`."""
        # An option has the name of its module, which saves reading the files of most of the other options.
        names = sorted(self.options(group), key=lambda name: name not in target.split("."))
        return next((name for name in names if self.content(group, name).get("_target_") == target), None)


def groups_in(folders: Sequence[Path | None]) -> Groups:
    """Return the groups of the folders that exist."""
    return Groups(tuple(folder for folder in folders if folder is not None and folder.is_dir()))


def _content(file: Path) -> dict[str, Any]:
    return {key: value for key, value in _loaded(file).items() if key != "defaults"}


@lru_cache(maxsize=256)
def _loaded(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        if problem := yaml_problem(text):
            raise ConfigError(format_error(str(file), problem, "Write it in fewer levels and values"))
        loaded = yaml.load(text, Loader=_YAML_LOADER)
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            format_error(str(file), f"cannot be read as YAML ({' '.join(str(error).partition(';')[0].split())})")
        ) from error
    return loaded if isinstance(loaded, dict) else {}


def yaml_problem(text: str, max_depth: int = _MAX_DEPTH) -> str | None:
    """Return the problem of a YAML text with too many levels or too many values, which aliases multiply.

    The text is read event by event: building a tree of it would end the process if it is nested deeply.

    Raises:
        yaml.YAMLError: The text is no YAML.
    """
    try:
        return _event_problem(yaml.parse(text, Loader=_YAML_LOADER), max_depth)
    except yaml.YAMLError as error:
        if "maximum nesting depth" in str(error):  # of PyYAML since 6.0.4
            return f"is nested more than {max_depth} levels deep"
        raise


def _event_problem(events: Iterable[yaml.Event], max_depth: int) -> str | None:
    open_nodes: list[tuple[str | None, int, int]] = []  # anchor, values and levels so far
    extents: dict[str | None, tuple[int, int]] = {}
    for event in events:
        if isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1, 1))
            if len(open_nodes) > max_depth:
                return f"is nested more than {max_depth} levels deep"
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size, height = open_nodes.pop()
        elif isinstance(event, yaml.AliasEvent):
            # A node that contains itself has no size yet.
            anchor, (size, height) = None, extents.get(event.anchor, (_MAX_VALUES + 1, 1))
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size, height = event.anchor, 1, 0
        else:
            continue
        extents[anchor] = size, height
        if open_nodes:
            outer, size_before, height_before = open_nodes.pop()
            open_nodes.append((outer, size_before + size, max(height_before, height + 1)))
        if size > _MAX_VALUES:
            return f"has more than {_MAX_VALUES} values"
        # The levels of an alias are those of its node, which may contain aliases.
        if len(open_nodes) + height > max_depth:
            return f"is nested more than {max_depth} levels deep"
    return None


def size_problem(value: object) -> str | None:
    """Return the problem of a value with too many levels or too many values."""
    layer: list[Any] = [value]
    count = 0
    for _ in range(_MAX_DEPTH + 1):
        holders = (holder.values() if isinstance(holder, dict) else holder for holder in layer if _holds(holder))
        layer = [item for holder in holders for item in holder]
        count += len(layer)
        if not layer:
            return None
        if count > _MAX_VALUES:
            return f"has more than {_MAX_VALUES} values"
    return f"is nested more than {_MAX_DEPTH} levels deep"


def _holds(value: object) -> bool:
    return isinstance(value, list | dict)


# Keys


_FREE = ("data.mix", "loader.weights")
"""Keys whose values are mappings of names in the user's data."""


def is_named_set(path: str, value: object) -> bool:
    """Return whether a key of a part is a validation set of several files, by a name of the user's."""
    return path.startswith("data.validation.") and isinstance(value, Mapping)


@dataclass(frozen=True)
class KnownKeys:
    """The keys that one verb has.

    Attributes:
        job_type: The verb's job type.
        groups: The groups of all config folders.
        tree: The composed config, not resolved.
        is_stored: The config belongs to a run, so its options cannot be chosen again.
        presets: The file of the experiment or debug option that sets a key, for each such key.
    """

    job_type: type
    groups: Groups
    tree: Mapping[str, Any]
    is_stored: bool = False
    presets: Mapping[str, Path] = field(default_factory=dict)

    def validate_override(self, override: Override) -> list[str]:
        """Return the problems of the key of an override of a value."""
        path, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            value = override.get_value_string()
        if override.is_delete():
            return self._validate_deletion(path)
        current = find(self.tree, path)
        if override.is_add() or override.is_force_add():
            # A new key is validated with the composed config, where everything around it is known.
            exists = current is not _ABSENT and not isinstance(value, dict | list)
            remedy = f"Leave out the +: {path}={override.get_value_string()}"
            return [format_error(path, "already exists", remedy)] if exists and override.is_add() else []
        if isinstance(value, dict) and isinstance(current, Mapping) and path not in _FREE:
            inner = [(f"{path}.{key}", item) for key, item in value.items()]
            unknown = [
                (key, item)
                for key, item in inner
                if find(self.tree, key) is _ABSENT and not self._is_open(key) and not is_named_set(key, item)
            ]
            return [self.unknown(key, item) for key, item in unknown]
        return [] if current is not _ABSENT or self._is_open(path) else [self.unknown(path, value)]

    def _is_open(self, path: str) -> bool:
        """Return whether a key is in a mapping of another library, such as `model.config`; its part checks the key."""
        names = path.split(".")
        above = find(self.tree, ".".join(names[:2]))
        return len(names) > 2 and names[0] in schema.groups(self.job_type) and above == {}

    def _validate_deletion(self, path: str) -> list[str]:
        if find(self.tree, path) is _ABSENT:
            return [self.unknown(path)]
        top = path.split(".")[0]
        if top in schema.groups(self.job_type) and path != top:
            return []
        return [format_error(path, "cannot be deleted", "Set a value; null turns off an optional feature")]

    def unknown(self, path: str, value: object = _ABSENT) -> str:
        """Return the message for an unknown key."""
        if remedy := self._foreign_remedy(path, value):
            return format_error(path, "unknown key", remedy, **({} if value is _ABSENT else {"value": value}))
        parent, _, name = path.rpartition(".")
        above = find(self.tree, parent) if parent else self.tree
        error = partial(format_error, path) if value is _ABSENT else partial(format_error, path, value=value)
        if above is _ABSENT:
            is_key = "." not in parent and name in schema.keys(self.job_type)  # such as trainer.devices
            return error("unknown key", f"Did you mean {name}?") if is_key else self.unknown(parent)
        if above is None and parent in schema.groups(self.job_type):
            every = self.groups.options(parent)
            having = [option for option in every if name in self.groups.content(parent, option)] or every
            options = " or ".join(f"{parent}={option}" for option in having)
            return error(f"no {parent} is chosen", "" if self.is_stored else f"Add {options}")
        if above is None:
            example = "..." if value is _ABSENT else value
            return error(f"{parent} is null and has no keys", f"Set {parent}={{{name}: {example}}}")
        if not isinstance(above, Mapping):
            return error(f"{parent} is a value and has no keys")
        remedy = self._remedy(parent, name, above)
        if path in self.presets:  # often the key of another option than the one that is chosen
            file = os.path.relpath(self.presets[path])
            remedy = f"{remedy.removesuffix('.')}. It is set in {file}: add '~{path}' to leave it out"
        return error("unknown key", remedy)

    def _foreign_remedy(self, path: str, value: object) -> str:
        """Return what does here what a key of another trainer does there; empty if the key is not one."""
        foreign = None if self.is_stored else foreign_name(path)
        top = path.partition(".")[0]
        groups = {*schema.groups(self.job_type), *jobs.preset_groups(self.job_type)}
        if foreign is None or not foreign.fits({*dict(flatten(self.tree)), *groups}):
            return ""
        text = None if value is _ABSENT else as_text(value)
        is_itself = path in foreign.names.split() and foreign.translate(text) is not None
        of_section = "." in path and top in self.tree and not foreign.override.startswith(f"{top}.")
        return "" if of_section and not is_itself and self._is_near(path) else foreign.remedy(text)

    def _is_near(self, path: str) -> bool:
        """Return whether a key is one of its section, misspelled, or one of another option."""
        parent, _, name = path.rpartition(".")
        above = find(self.tree, parent)
        if not isinstance(above, Mapping) or self._other_option(parent, name):
            return True
        return bool(get_close_matches(name, self._siblings(parent, above), n=1, cutoff=0.75))

    def _remedy(self, parent: str, name: str, above: Mapping[str, Any]) -> str:
        siblings = [key for key in self._siblings(parent, above) if key != name and not key.startswith("_")]
        prefix = f"{parent}." if parent else ""
        if near := get_close_matches(name, siblings, n=1, cutoff=0.6):
            return f"Did you mean {prefix}{near[0]}?"
        itself = f"{prefix}{name}"
        names = {path: path.rpartition(".")[2] for path, _ in flatten(self.tree)}
        near = [name] if parent else get_close_matches(name, [*names.values()], n=1, cutoff=0.85)
        if elsewhere := [path for path, last in names.items() if last in near and path != itself]:
            return f"Did you mean {' or '.join(elsewhere)}?"
        known = f"Known: {', '.join(prefix + key for key in dict.fromkeys(siblings))}" if siblings else "It has no keys"
        if self.is_stored:
            return known
        return ". ".join(filter(None, [self._other_option(parent, name), known, self._plugged_in(parent, above)]))

    def _siblings(self, parent: str, above: Mapping[str, Any]) -> list[str]:
        """Return the known keys next to an unknown one; other keys of the tree may be wrong as well."""
        sections = schema.sections(self.job_type)
        if not parent:
            presets, stored = jobs.preset_groups(self.job_type), jobs.stored_sections(self.job_type)
            return [*schema.keys(self.job_type), *presets, *stored]
        if parent in sections:
            return list(schema.keys(sections[parent]))
        option = self.groups.option_of(parent, str(above.get("_target_")))
        own = self.groups.content(parent, option) if option else map(str, above)
        return [*schema.shared_keys(self.job_type, parent), *own]

    def _other_option(self, group: str, name: str) -> str:
        """Return a hint to the options of the group that have the key, or else a similar one; may be empty."""
        options = self.groups.options(group) if group in schema.groups(self.job_type) else ()
        for cutoff in (1.0, 0.6):
            having: dict[str, list[str]] = {}
            for option in options:
                public = [key for key in self.groups.content(group, option) if not key.startswith("_")]
                for near in get_close_matches(name, public, n=1, cutoff=cutoff):
                    having.setdefault(near, []).append(f"{group}={option}")
            if having:
                near = name if name in having else get_close_matches(name, list(having), n=1)[0]
                verb = "has" if len(having[near]) == 1 else "have"
                *others, last = having[near]
                names = f"{', '.join(others)} and {last}" if others else last
                return f"{names} {verb} {group}.{near}"
        return ""

    @staticmethod
    def _plugged_in(group: str, part: Mapping[str, Any]) -> str:
        target = str(part.get("_target_", OWN))
        return "" if target.startswith(OWN) else f"Add a key of {target} with +{group}.<key>=<value>"


def find(tree: object, path: str) -> Any:
    """Return the value at a dotted path, or a marker that equals no value if there is none."""
    for name in path.split("."):
        if isinstance(tree, Mapping) and name in tree:
            tree = tree[name]
        elif isinstance(tree, list) and name.isdecimal() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return _ABSENT
    return tree


def is_known(tree: Mapping[str, Any], path: str) -> bool:
    """Return whether there is a value at a dotted path."""
    return find(tree, path) is not _ABSENT
