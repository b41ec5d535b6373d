"""The files that the parameters `train`, `validation` and `test` of a source name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from glob import glob, has_magic
from hashlib import blake2b
from os import R_OK, access
from pathlib import Path

from trainer.data.images import file_digest_of
from trainer.data.rows import place
from trainer.errors import ConfigError, DataError, format_error

Given = Mapping[str, str | Sequence[str] | None]
Paths = dict[str, list[Path]]

_LINES = (".txt", ".text", ".md", ".log")
"""Endings of texts that hold no table."""


def located(given: Given, suffixes: Sequence[str] | None) -> Paths:
    """The files of each split that has its own, in the order given, those of a pattern by name.

    Args:
        given: A path, a pattern or several for each split; None for none.
        suffixes: The endings of names that can be read; None for any.

    Raises:
        ConfigError: A split names no file.
        DataError: A file is missing, cannot be read, is of no known format, or is named for two splits.
    """
    found: Paths = {}
    splits: dict[Path, str] = {}
    for split, names in given.items():
        if names is None:
            continue
        patterns = [names] if isinstance(names, str) else names
        found[split] = list(dict.fromkeys(path for pattern in patterns for path in _matches(split, pattern, suffixes)))
        if not found[split]:
            raise ConfigError(format_error(split, "names no file", value=names))
        for path in found[split]:
            if (other := splits.setdefault(path.resolve(), split)) != split:
                raise DataError(format_error(f"data.{split}", f"names a file of data.{other} too", value=str(path)))
    return found


def fingerprint_of(paths: Mapping[str, Iterable[Path]], known: object, kind: Callable[[Path], str | None]) -> str:
    """Of the contents of files in their order and of how they are read; where they lie does not matter.

    Args:
        paths: The files of each split.
        known: What else the splits follow from.
        kind: How a file is read, as far as its name says it.

    Raises:
        DataError: A file cannot be read.
    """
    digest = blake2b(repr(known).encode(), digest_size=16)
    for split, files in paths.items():
        for path in files:
            digest.update(f"\n{split} {kind(path)} {readable_digest(path)}".encode())
    return digest.hexdigest()


def readable_digest(path: Path) -> str:
    """Of the content of a file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return file_digest_of(path)
    except OSError as error:
        raise DataError(format_error(str(path), f"cannot be read: {error.strerror}", "Is it complete?")) from error


def where(paths: Mapping[str, Sequence[Path]], split: str, row: int, noun: str) -> str:
    """`my.csv, row 18`: the file of a row and the number in it."""
    file, record = place(row)
    return f"{(paths.get(split) or paths['train'])[file]}, {noun} {record}"


def _matches(split: str, pattern: str, suffixes: Sequence[str] | None) -> list[Path]:
    """The files that a path or a pattern names, in the order of their names."""
    path = Path(pattern).expanduser()
    paths = [path]
    if has_magic(pattern) and not path.exists():
        paths = [Path(name) for name in sorted(glob(str(path), recursive=True)) if Path(name).is_file()]
    if not paths or not paths[0].exists():
        similar = get_close_matches(path.name, _names_in(path.parent), n=1, cutoff=0.5)
        remedy = f"Did you mean {path.parent / similar[0]}" if similar else f"Paths are relative to {Path.cwd()}"
        raise DataError(format_error(f"data.{split}", "no such file", remedy, value=pattern))
    for path in paths:
        if path.is_dir():
            remedy = f"Name its files: {path / ('*.csv' if suffixes else '*.txt')}"
            raise DataError(format_error(f"data.{split}", "expected a file, not a folder", remedy, value=pattern))
        if suffixes is not None and not path.name.lower().endswith(tuple(suffixes)):
            problem = "is of no format that can be read"
            remedy = f"Formats: {', '.join(sorted(suffixes))}"
            if path.suffix.lower() in _LINES:
                remedy += "; data=lines reads texts, line by line"
            raise DataError(format_error(str(path), problem, remedy))
        if not access(path, R_OK):
            raise DataError(format_error(str(path), "may not be read by this user", "Change its permissions"))
    return paths


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
