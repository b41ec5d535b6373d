"""Images in folders, one folder per class."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from trainer.constraints import DataFolder, NonEmptyStr, Rule, validated
from trainer.data.cells import IMAGE_SUFFIXES
from trainer.data.data_files import content_digest, files_fingerprint, warn_of_links
from trainer.data.split_cache import cache_key, cached_splits
from trainer.data.split_layout import SPLIT_KEYS, Shares, SplitLayout
from trainer.data.splits import Sample, row_id, split_row_id, split_schema, write_splits
from trainer.display import counted
from trainer.errors import DataError, format_error, raise_if_any
from trainer.layout import expand_home
from trainer.validation_sets import by_split, file_stem, is_validation, name_problems

if TYPE_CHECKING:
    from datasets import Dataset

_MAX_LISTED = 3
_LOG = logging.getLogger(__name__)

_VERSION = 1
"""Increase it if the same files give different splits."""

SPLIT_OF_NAME = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The split of a folder, by its name in lower case."""


class ImageFolder:
    """Columns `image` (the path of a file), `label` (the name of a folder) and `row`.

    Images are in `root/<class>/`, or in `root/train/<class>/`, `root/validation/<class>/` (or `valid`, `val`) and
    `root/test/<class>/`, at any depth; the case of the names of splits does not matter. Hidden files and folders are
    skipped, links are followed. The images that are held out from training for `validation` and `test` are chosen by
    the bytes of an image only, as in `data=files`.

    Args:
        root: The folder.
        validation: The folder of the classes of the validation split, or of several validation sets by name; None
            takes `root/validation`, or holds out a share of training.
        split: Shares of `validation` and `test` in [0, 1), for splits without a folder; 0 for no test split.
        cache_dir: The folder of the table of paths; None for the cache of the datasets library.
    """

    @validated(
        SPLIT_KEYS,
        Rule(
            "(split['validation'] if validation is None else 0) + split['test'] < 1",
            "split",
            "leaves no rows for training",
        ),
        Rule(
            "validation is not None or split['validation'] > 0",
            "split.validation",
            "a run needs a validation split",
            "Set a share above 0, or name a folder in data.validation",
        ),
    )
    def __init__(
        self,
        root: DataFolder,
        validation: DataFolder | Mapping[NonEmptyStr, DataFolder] | None,
        split: Shares,
        cache_dir: str | None,
    ) -> None:
        raise_if_any(*name_problems(validation))
        self._root = Path(expand_home(root))
        named = by_split(validation).items()
        self._validation = {name: Path(expand_home(folder)) for name, folder in named if folder is not None}
        self._split = split
        self._cache_dir = cache_dir

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the contents, the classes and the order of all images; the path of the root does not matter."""
        labels = {split: [label for _, label in images] for split, images in self.images.items()}
        settings = ("imagefolder", _VERSION, self._layout.shares, labels)
        paths = {split: [path for path, _ in images] for split, images in self.images.items()}
        return files_fingerprint(paths, settings, lambda path: "")

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the splits; the images stay in their files.

        Raises:
            DataError: There are no images, a file cannot be read, or a split has no rows.
        """
        names = [role for role in ("image", "label") if role in roles]
        places = [str(path.absolute()) for path in (self._root, *self._validation.values())]
        key = cache_key(self.fingerprint, names, *places)
        write = partial(self._write, names=names)
        return cached_splits(self._cache_dir, "trainer_imagefolder", key, write, self._layout, self.describe_row)

    def describe_row(self, split: str, row: int) -> str:
        """Return `photos/train/cat/18.jpg`."""
        return self.locate_row(split, row)[0]

    def locate_row(self, split: str, row: int) -> tuple[str, None]:
        """Return the file of an image."""
        return str((self.images.get(split) or self.images["train"])[split_row_id(row)[1] - 1][0]), None

    def describe_role(self, role: str) -> str:
        """Return `the column label of data=imagefolder`: the user does not name its columns."""
        return f"the column {role} of data=imagefolder"

    @cached_property
    def _folders(self) -> dict[str, Path]:
        """The folder of each split that has its own."""
        for key, folder in {"root": self._root, **self._validation}.items():
            if not folder.is_dir():
                remedy = f"Paths are relative to {Path.cwd()}"
                raise DataError(format_error(f"data.{file_stem(key)}", "no such folder", remedy, value=str(folder)))
        folders = self._folders_below(self._root)
        # Classes may have the names of splits: a folder `train` without folders is a class.
        if not any(SPLIT_OF_NAME.get(path.name.casefold()) == "train" and _folders_in(path) for path in folders):
            _warn_of_splits(folders)
            return {"train": self._root, **self._validation}
        splits: dict[str, Path] = {}
        for path in folders:
            if path.name.casefold() not in SPLIT_OF_NAME:
                problem = "has a folder that is not a split next to train"
                remedy = f"Name the folders of splits {', '.join(SPLIT_OF_NAME)}"
                raise DataError(format_error(str(self._root), problem, remedy, value=path.name))
            split = SPLIT_OF_NAME[path.name.casefold()]
            if is_validation(split) and self._validation:
                problem, remedy = "is validation data that data.validation does not name", "Add it, or move it"
                raise DataError(format_error(str(path), problem, remedy))
            if (other := splits.setdefault(split, path)) != path:
                raise DataError(format_error(str(path), f"is the {split} split, and so is {other}", "Merge them"))
        splits |= self._validation
        return {name: splits[name] for name in self._names if name in splits}

    @property
    def _names(self) -> list[str]:
        return ["train", *(self._validation or ["validation"]), "test"]

    def _folders_below(self, folder: Path) -> list[Path]:
        """Return the folders in a folder that are not validation sets."""
        named = {path.resolve() for path in self._validation.values()}
        return [path for path in _folders_in(folder) if path.resolve() not in named]

    @cached_property
    def images(self) -> dict[str, list[tuple[Path, str]]]:
        """The images of each split that has its own, with their classes, sorted by class and name."""
        images = {}
        for split, folder in self._folders.items():
            labels = self._folders_below(folder)
            files = [(path, label.name) for label in labels for path in _walk(label)]
            images[split] = [(path, label) for path, label in files if _is_image(path)]
            if not images[split]:
                problem = f"has no folder with images: {folder}/<class>/<file>"
                remedy = f"Images end in {', '.join(IMAGE_SUFFIXES)}"
                raise DataError(format_error(str(folder), problem, remedy))
            key = f"data.{file_stem(split) if split in self._validation else 'root'}"
            warn_of_links(key, folder if split in self._validation else self._root, _links_in(folder))
            used = {label for _, label in images[split]}
            if empty := [str(label) for label in labels if label.name not in used]:
                message = "%s: %s no images and so no class; remove the folder or add images: %s"
                folders = counted(len(empty), "folder", "has")
                _LOG.warning(message, key, folders, ", ".join(empty[:_MAX_LISTED]))
            skipped = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")]
            if skipped := skipped + [path for path, _ in files if not _is_image(path)]:
                message = "%s: skipped %s outside of class folders or without an image suffix; the first is %s"
                _LOG.warning(message, key, counted(len(skipped), "file"), skipped[0])
        return images

    @cached_property
    def _layout(self) -> SplitLayout:
        own = {name: self._folders.get(name) for name in self._names}
        return SplitLayout.from_arguments(own, self._split)

    def _write(self, folder: Path, names: Sequence[str]) -> None:
        def no_rows_error(origin: str) -> DataError:
            raise AssertionError(f"no image in {origin}")

        origins = {origin: self._samples(origin) for origin in self.images}
        write_splits(folder, self._layout, split_schema(names), origins, "images without a class", no_rows_error)

    def _samples(self, origin: str) -> Iterator[Sample]:
        for number, (path, label) in enumerate(self.images[origin], 1):
            key = content_digest(path) if origin == "train" and self._layout.held_out else ""
            image = {"bytes": None, "path": str(path.absolute())}
            yield Sample(row_id(0, number), {"image": image, "label": label}, key)


def _warn_of_splits(folders: Sequence[Path]) -> None:
    """Warn if class folders contain only folders, and all of them the same ones, as splits do."""
    inner = [{path.name for path in _folders_in(folder)} for folder in folders]
    has_images = any(_is_image(path) for folder in folders for path in folder.iterdir())
    if len(inner) > 1 and len(inner[0]) > 1 and all(names == inner[0] for names in inner) and not has_images:
        classes = ", ".join(path.name for path in folders)
        message = "data.root: the classes %s all contain the folders %s; if these are the classes, rename the outer %s"
        _LOG.warning(message, classes, ", ".join(sorted(inner[0])), "folders to train, validation and test")


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders that are not hidden, sorted by name."""
    try:
        return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    except OSError as error:
        _raise_unreadable(error)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder by name, except hidden ones and folders that a link leads back to."""
    seen = {folder.resolve()}
    for path, folders, files in os.walk(folder, onerror=_raise_unreadable, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            if (target := Path(path, name).resolve()) in seen:
                folders.remove(name)
            seen.add(target)
        yield from (Path(path, name) for name in sorted(files) if not name.startswith("."))


def _links_in(folder: Path) -> Iterator[Path]:
    """Yield the links to images and folders in a folder, not those below other links; the folder if it is a link."""
    if folder.is_symlink():
        yield folder
        return
    for path, inner, files in os.walk(folder):
        places = [Path(path, name) for name in (*inner, *files) if not name.startswith(".")]
        yield from (place for place in places if place.is_symlink() and (place.is_dir() or _is_image(place)))


def _raise_unreadable(error: OSError) -> NoReturn:
    raise DataError(format_error(str(error.filename), f"cannot be read: {error.strerror}", "Change its permissions"))


def _is_image(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()
