"""Images in folders, one for each class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainer.data.images import SUFFIXES
from trainer.data.located import fingerprint_of, readable_digest
from trainer.data.rows import place, row_id
from trainer.data.splits import Division, Sample, key_for, read_splits, stored, write_splits
from trainer.errors import ConfigError, DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)

_VERSION = 1
"""To be raised when the same files give other splits."""

_NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "test": "test"}
"""The names of folders that are splits."""


class ImageFolder:
    """Columns `image` (the path of a file), `label` (the name of a folder) and `row`.

    Images lie in `root/<class>/`, or in `root/train/<class>/`, `root/validation/<class>/` (also `valid` or `val`) and
    `root/test/<class>/`, at any depth. Hidden files and folders are passed over, links are followed. What training
    lends to `validation` and `test` follows from the bytes of an image alone, as in `data=files`.

    Args:
        root: The folder.
        split: Shares of `validation` and `test` in [0, 1), for those without a folder; 0 for no test split.
        cache_dir: Where the table of paths lies; None for the cache of the library datasets.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    def __init__(self, root: str, split: Mapping[str, float], cache_dir: str | None) -> None:
        if not root:
            raise ConfigError(format_error("root", "must be a folder", value=root))
        Division.checked({"train": root, "validation": None, "test": None}, split)
        self._root = Path(root).expanduser()
        self._split = split
        self._cache_dir = cache_dir

    @cached_property
    def fingerprint(self) -> str:
        """Of the contents of all images, their classes and their order; where the root lies does not matter."""
        known = ("imagefolder", _VERSION, self._division.shares, self._labels)
        return fingerprint_of(self._files, known, lambda path: "")

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits; the images stay where they are.

        Raises:
            DataError: There are no images, a file cannot be read, or a split came out empty.
        """
        names = [role for role in ("image", "label") if role in roles]
        key = key_for(self.fingerprint, names, str(self._root.absolute()))
        folder = stored(self._cache_dir, "trainer_imagefolder", key, lambda new: self._write(new, names))
        return read_splits(folder, self._division, self.where)

    def where(self, split: str, row: int) -> str:
        """`photos/train/cat/18.jpg`."""
        return str((self._files.get(split) or self._files["train"])[place(row)[1] - 1])

    def column(self, role: str) -> str:
        """`the column label of data=imagefolder`: its columns have no names of the user's."""
        return f"the column {role} of data=imagefolder"

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """The folder of each split that has its own."""
        if not self._root.is_dir():
            remedy = f"Paths are relative to {Path.cwd()}"
            raise DataError(format_error("data.root", "no such folder", remedy, value=str(self._root)))
        folders = _folders_in(self._root)
        names = [path.name for path in folders]
        # Classes may have such names too: a folder `train` without folders is one.
        if "train" not in names or not _folders_in(self._root / "train"):
            return {"train": self._root}
        found: dict[str, Path] = {}
        for path in folders:
            if path.name not in _NAMES:
                remedy = f"Folders of splits are {', '.join(_NAMES)}"
                raise DataError(format_error(str(self._root), "holds train and other folders", remedy, value=path.name))
            if (other := found.setdefault(_NAMES[path.name], path)) != path:
                raise DataError(format_error(str(path), f"is the {_NAMES[path.name]} split, and so is {other}"))
        return {name: found[name] for name in ("train", "validation", "test") if name in found}

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """The images of each split that has its own: by class, then by name."""
        return {split: [path for path, _ in found] for split, found in self._found.items()}

    @cached_property
    def _labels(self) -> dict[str, list[str]]:
        return {split: [label for _, label in found] for split, found in self._found.items()}

    @cached_property
    def _found(self) -> dict[str, list[tuple[Path, str]]]:
        found = {}
        for split, folder in self._folders.items():
            files = [(path, label.name) for label in _folders_in(folder) for path in _walk(label)]
            found[split] = [(path, label) for path, label in files if _is_image(path)]
            if not found[split]:
                problem = f"has no folder with images: {folder}/<class>/<file>"
                raise DataError(format_error(str(folder), problem, f"Images end in {', '.join(SUFFIXES)}"))
            others = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
            if others := others + [path for path, _ in files if not _is_image(path)]:
                told = "data.root: files in no class, or no images by their names, are left out: %d, the first is %s"
                _LOG.warning(told, len(others), others[0])
        return found

    @cached_property
    def _division(self) -> Division:
        own = {name: self._folders.get(name) for name in ("train", "validation", "test")}
        return Division.checked(own, self._split)

    def _write(self, folder: Path, names: Sequence[str]) -> None:
        from trainer.data.arrow import schema_of

        def nothing(origin: str) -> DataError:
            raise AssertionError(f"no image in {origin}")

        origins = {origin: self._samples(origin) for origin in self._files}
        write_splits(folder, self._division, schema_of(names), origins, "images without a class", nothing)

    def _samples(self, origin: str) -> Iterator[Sample]:
        for number, (path, label) in enumerate(self._found[origin], 1):
            key = readable_digest(path) if origin == "train" and self._division.lent else ""
            image = {"bytes": None, "path": str(path.absolute())}
            yield Sample(row_id(0, number), {"image": image, "label": label}, key)


def _folders_in(folder: Path) -> list[Path]:
    """Those that are not hidden, by name."""
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        _refuse(error)


def _walk(folder: Path) -> Iterator[Path]:
    """The files below a folder, by name; hidden ones and those of folders that a link leads back to are passed over."""
    seen = {folder.resolve()}
    for path, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            if (target := Path(path, name).resolve()) in seen:
                folders.remove(name)
            seen.add(target)
        yield from (Path(path, name) for name in sorted(files) if not name.startswith("."))


def _refuse(error: OSError) -> NoReturn:
    raise DataError(format_error(str(error.filename), f"cannot be read: {error.strerror}", "Change its permissions"))


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in SUFFIXES and not path.is_dir()
