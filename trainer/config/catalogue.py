"""The configuration folders and what they offer: groups, their options, the keys of an option."""

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
    """Our own configuration: inside the package where it is installed, beside it in a checkout."""
    inside = PACKAGE / "conf"
    return inside if inside.is_dir() else PACKAGE.parent / "conf"


def working_folder() -> Path | None:
    """The `conf` of the working directory, where it is not our own."""
    folder = Path.cwd() / "conf"
    return folder if folder.is_dir() and folder.resolve() != own_folder().resolve() else None


def search_folder(entry: str) -> Path | None:
    """The folder of one entry of Hydra's search path (`file://...`, `pkg://...` or a path), where it has one."""
    if entry.startswith("pkg://"):
        package, *rest = entry.removeprefix("pkg://").replace("/", ".").split(".")
        spec = find_spec(package)
        places = spec.submodule_search_locations if spec else None
        return Path(next(iter(places))).joinpath(*rest) if places else None
    return Path(entry.removeprefix("file://"))


@dataclass(frozen=True)
class Catalogue:
    """Configuration folders, the first of which wins."""

    folders: tuple[Path, ...]

    def groups(self) -> list[str]:
        """Every group with an option, nested ones as `model/backbone`; Hydra's own are left out."""
        found = {
            file.parent.relative_to(folder).as_posix()
            for folder in self.folders
            for file in folder.rglob("*.yaml")
            if file.parent != folder
        }
        return sorted(group for group in found if group.split("/")[0] != "hydra")

    def options(self, group: str) -> list[str]:
        """The options of a group."""
        return sorted({file.stem for folder in self.folders for file in (folder / group).glob("*.yaml")})

    def file(self, group: str, option: str) -> Path | None:
        """The file of an option."""
        files = (folder / group / f"{option}.yaml" for folder in self.folders)
        return next((file for file in files if file.is_file()), None)

    def content(self, group: str, option: str) -> dict[str, Any]:
        """The keys of an option, without its defaults list; empty where there is no such option."""
        file = self.file(group, option)
        content = _content(file) if file else {}
        # An option that also chooses others is written for the whole configuration (`# @package _global_`).
        own = content.get(group)
        return own if isinstance(own, dict) and "_target_" in own else content

    def defaults(self, name: str) -> list[Any]:
        """The defaults list of a primary configuration, with those of the ones in it."""
        files = (folder / f"{name}.yaml" for folder in self.folders)
        file = next((file for file in files if file.is_file()), None)
        listed = list(_loaded(file).get("defaults", [])) if file else []
        return [inner for item in listed for inner in (self.defaults(item) if isinstance(item, str) else ()) or [item]]

    def option_of(self, group: str, target: str) -> str | None:
        """The option of a group that makes `target`."""
        matches = (name for name in self.options(group) if self.content(group, name).get("_target_") == target)
        return next(matches, None)


def catalogue(folders: Sequence[Path | None]) -> Catalogue:
    """The catalogue of those `folders` that there are."""
    return Catalogue(tuple(folder for folder in folders if folder is not None and folder.is_dir()))


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
