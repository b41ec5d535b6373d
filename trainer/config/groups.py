"""The config folders, their groups and options, and the YAML files of these."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import ConfigError, format_error

PACKAGE = Path(__file__).resolve().parents[1]
OWN = f"{PACKAGE.name}."
"""The beginning of the dotted names of this package."""

HYDRA_KEYS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_", "_args_"})
_MAX_DEPTH = 40
"""Lists and mappings of a config may be nested this deep."""

_MAX_VALUES = 100_000
_YAML_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


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
        # An alias has as many levels as its node, which may contain aliases.
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
