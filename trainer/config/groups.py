"""The config folders and their contents: groups, the options of a group, the keys of an option."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import ConfigError, format_error

PACKAGE = Path(__file__).resolve().parents[1]


def own_folder() -> Path:
    """Return the config folder of this project: inside the installed package, or next to it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def working_folder() -> Path | None:
    """Return the `conf` of the working directory, unless it is this project's own."""
    folder = Path.cwd() / "conf"
    return folder if folder.is_dir() and folder.resolve() != own_folder().resolve() else None


def search_folder(entry: str) -> Path | None:
    """Return the folder of an entry of Hydra's search path (`file://...`, `pkg://...` or a path), if it has one."""
    if entry.startswith("pkg://"):
        package, *rest = entry.removeprefix("pkg://").replace("/", ".").split(".")
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
        return next((file for file in files if file.is_file()), None)

    def content(self, group: str, option: str) -> dict[str, Any]:
        """Return the keys of an option without its defaults list; empty if there is no such option."""
        file = self.file(group, option)
        content = _content(file) if file else {}
        # An option that also chooses other groups is written for the whole config (`# @package _global_`).
        own = content.get(group)
        return own if isinstance(own, dict) and "_target_" in own else content

    def defaults(self, name: str) -> list[Any]:
        """Return the defaults list of a primary config, with the lists of the configs in it."""
        files = (folder / f"{name}.yaml" for folder in self.folders)
        file = next((file for file in files if file.is_file()), None)
        listed = list(_loaded(file).get("defaults", [])) if file else []
        return [inner for item in listed for inner in (self.defaults(item) if isinstance(item, str) else ()) or [item]]

    def option_of(self, group: str, target: str) -> str | None:
        """Return the option of a group that makes `target`."""
        matches = (name for name in self.options(group) if self.content(group, name).get("_target_") == target)
        return next(matches, None)


def groups_in(folders: Sequence[Path | None]) -> Groups:
    """Return the groups of the folders that exist."""
    return Groups(tuple(folder for folder in folders if folder is not None and folder.is_dir()))


def _content(file: Path) -> dict[str, Any]:
    return {key: value for key, value in _loaded(file).items() if key != "defaults"}


@lru_cache(maxsize=256)
def _loaded(file: Path) -> dict[str, Any]:
    try:
        loaded = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            format_error(str(file), f"cannot be read as YAML ({' '.join(str(error).split())})")
        ) from error
    return loaded if isinstance(loaded, dict) else {}
