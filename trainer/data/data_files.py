"""Sources of files that the user names per split: find the files, fingerprint them, and read one split only."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from difflib import get_close_matches
from functools import cached_property
from glob import glob, has_magic
from hashlib import blake2b
from os import R_OK, access
from os.path import realpath  # unlike `Path.resolve`, it raises no error for links that lead to themselves
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self, TypeAlias

from annotated_types import MinLen

from trainer.constraints import DataFile, NonEmptyStr
from trainer.data.cells import file_bytes_digest
from trainer.data.line_reader import unreadable_error
from trainer.data.split_cache import cache_key, cached_splits
from trainer.data.split_layout import GroupedShares, SplitLayout
from trainer.data.splits import split_row_id
from trainer.display import counted
from trainer.errors import DataError, RowErrors, format_error, raise_if_any
from trainer.layout import expand_home
from trainer.validation_sets import by_split, file_stem, name_problems

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)

DataFiles: TypeAlias = DataFile | Annotated[list[DataFile], MinLen(1)]
"""A path, a pattern such as `data/*.csv`, or a list of them."""

ValidationFiles: TypeAlias = DataFiles | Mapping[NonEmptyStr, DataFiles]
"""The files of one validation set, or of several by name."""

Paths = dict[str, list[Path]]
"""The files of each split that has its own."""

_TEXT_SUFFIXES = (".txt", ".text", ".md", ".log")
"""Suffixes of text files that contain no table."""


class FileSource:
    """The common part of the sources whose arguments `train`, `validation` and `test` name files.

    A split without files is held out from the training files. The splits are memory-mapped Arrow files in the cache of
    the datasets library, written once for each content of the files.

    Attributes:
        row_noun: The unit of a row's number in a message: `row`, `line`.
        suffixes: The suffixes of files that can be read; None for any.
    """

    row_noun: ClassVar[str]
    suffixes: ClassVar[Sequence[str] | None] = None

    def __init__(
        self,
        train: DataFiles,
        validation: ValidationFiles | None,
        test: DataFiles | None,
        split: GroupedShares,
        cache_dir: str | None,
    ) -> None:
        raise_if_any(*name_problems(validation))
        self._file_names: Mapping[str, DataFiles | None] = {"train": train, **by_split(validation), "test": test}
        self._layout = SplitLayout.from_arguments(self._file_names, split)
        self._cache_dir = cache_dir

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the contents of the files, of their order and of the way they are read; paths do not matter."""
        return self._content_fingerprint()

    def _content_fingerprint(self) -> str:
        return files_fingerprint(self._paths, self._settings(), self._format_of)

    def _settings(self) -> tuple[object, ...]:
        """Return the arguments that the splits depend on, in the order in which they enter the fingerprint."""
        raise NotImplementedError

    def _format_of(self, path: Path) -> str | None:
        """Return the format of a file, as far as its name decides it: `.gz` for a compressed text file."""
        return path.suffix.lower() if path.suffix == ".gz" else ""

    def describe_row(self, split: str, row: int) -> str:
        """Return `my.csv, row 18`: the file of a row and its number in it."""
        file, record = self.locate_row(split, row)
        return f"{file}, {self.row_noun} {record}"

    def locate_row(self, split: str, row: int) -> tuple[str, int]:
        """Return the file of a row and its number in it."""
        file, record = split_row_id(row)
        return str((self._paths.get(split) or self._paths["train"])[file]), record

    def for_split(self, split: str, numeric: Mapping[str, bool]) -> Self | None:
        """Return the source that reads the files of one split only; None if the split needs the files of another."""
        layout = self._layout.for_split(split)
        if layout is None:
            return None
        source = copy(self)
        for name in ("fingerprint", "_paths"):
            source.__dict__.pop(name, None)
        source._file_names, source._layout = layout.own, layout
        return source

    @cached_property
    def _paths(self) -> Paths:
        return find_data_files(self._file_names, self.suffixes)

    def _cached_splits(
        self, source: str, roles: Sequence[str], write: Callable[[Path], None], *more: str
    ) -> dict[str, Dataset]:
        """Return the splits from the cache folder of `source`; call `write` to fill it if needed."""
        key = cache_key(self.fingerprint, roles, *more)
        return cached_splits(self._cache_dir, source, key, write, self._layout, self.describe_row)


def find_data_files(names: Mapping[str, str | Sequence[str] | None], suffixes: Sequence[str] | None) -> Paths:
    """Return the files of each split that has its own, in the order of their names; a pattern's files sorted by name.

    Args:
        names: A path, a pattern or several per split; None for no files.
        suffixes: The suffixes of files that can be read; None for any.

    Raises:
        DataError: A file is missing, unreadable, of an unknown format, or named for two splits.
    """
    paths: Paths = {}
    split_of: dict[Path, str] = {}
    for split, value in names.items():
        if value is None:
            continue
        patterns = [value] if isinstance(value, str) else value
        paths[split] = list(dict.fromkeys(path for pattern in patterns for path in _matches(split, pattern, suffixes)))
        for path in paths[split]:
            if (other := split_of.setdefault(path.resolve(), split)) != split:
                problem, remedy = f"names a file of data.{file_stem(other)} too", "Leave it out of one of them"
                raise DataError(format_error(f"data.{file_stem(split)}", problem, remedy, value=str(path)))
    return paths


def _matches(split: str, pattern: str, suffixes: Sequence[str] | None) -> list[Path]:
    """Return the files that a path or a pattern names, sorted by name."""
    key = f"data.{file_stem(split)}"
    path = Path(expand_home(pattern))
    paths = [path]
    if has_magic(pattern) and not path.exists():
        paths = [Path(name) for name in sorted(glob(str(path), recursive=True)) if Path(name).is_file()]
        warn_of_links(key, _fixed_folder(path), paths)
    if not paths or not paths[0].exists():
        similar = get_close_matches(path.name, _names_in(path.parent), n=1, cutoff=0.5)
        remedy = f"Did you mean {path.parent / similar[0]}" if similar else f"Paths are relative to {Path.cwd()}"
        raise DataError(format_error(key, "no such file", remedy, value=pattern))
    for path in paths:
        if path.is_dir():
            remedy = f"Name the files in it: {path / ('*.csv' if suffixes else '*.txt')}"
            raise DataError(format_error(key, "expected a file, not a folder", remedy, value=pattern))
        if not path.is_file():
            remedy = "Write what it yields into a file first"
            raise DataError(format_error(key, "is a pipe or a device, not a file", remedy, value=pattern))
        if suffixes is not None and not path.name.lower().endswith(tuple(suffixes)):
            remedy = f"Supported formats: {', '.join(sorted(suffixes))}"
            if path.suffix.lower() in _TEXT_SUFFIXES:
                remedy += "; data=lines reads text files line by line"
            raise DataError(format_error(str(path), "unsupported file format", remedy))
        if not access(path, R_OK):
            raise DataError(format_error(str(path), "permission denied", "Make the file readable for this user"))
    return paths


def _fixed_folder(pattern: Path) -> Path:
    """Return the folder whose name no wildcard is part of: `data` of `data/*/*.csv`."""
    return next(folder for folder in pattern.parents if not has_magic(str(folder)))


def warn_of_links(key: str, folder: Path, paths: Iterable[Path]) -> None:
    """Warn of links that lead out of a folder: it may come from a stranger, and what they lead to is read.

    Args:
        key: The key that names the folder.
        folder: The folder.
        paths: Links in it, or places that may be below links.
    """
    root = realpath(folder)
    if outside := [path for path in paths if not Path(realpath(path)).is_relative_to(root)]:
        message = "%s: followed links out of %s to %s; the first is %s, which is %s"
        places = counted(len(outside), "place")
        _LOG.warning(message, key, folder, places, outside[0], realpath(outside[0]))


def _names_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder, to suggest one of them; not of pipes and devices."""
    return [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []


def files_fingerprint(
    paths: Mapping[str, Iterable[Path]], settings: object, format_of: Callable[[Path], str | None]
) -> str:
    """Return a digest of the contents of files, of their order and of the way they are read; paths do not matter.

    Args:
        paths: The files of each split.
        settings: Everything else that the splits depend on.
        format_of: The format of a file, as far as its name decides it.

    Raises:
        DataError: Some files cannot be read.
    """
    digest = blake2b(repr(settings).encode(), digest_size=16)
    errors = RowErrors()
    for split, files in paths.items():
        for path in files:
            try:
                digest.update(f"\n{split} {format_of(path)} {content_digest(path)}".encode())
            except DataError as error:
                errors.add(error)
    errors.raise_if_any()
    return digest.hexdigest()


def content_digest(path: Path) -> str:
    """Return a digest of the content of a file.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        return file_bytes_digest(path)
    except OSError as error:
        raise unreadable_error(path, error) from error
