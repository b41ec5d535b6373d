"""Texts and labels from the user's own files."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from difflib import get_close_matches
from functools import cached_property
from glob import glob, has_magic
from hashlib import blake2b, file_digest
from os import R_OK, access
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from trainer.data.readers import records, suffix_of, suffixes
from trainer.data.rows import as_text, place, row_id, split_of
from trainer.errors import ConfigError, DataError, explain

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 2
"""To be raised when the same files give other splits."""

_LOG = logging.getLogger(__name__)


class Files:
    """Columns `text`, `label` and `row` from CSV, TSV, JSON, JSON Lines, Parquet or Arrow files.

    What the training files lend to `validation` and `test` follows from the text alone: duplicates meet in one split,
    and neither the order of rows nor new ones move any. Rows without a text or a label are left out with a warning.
    The splits are memory-mapped Arrow files in the cache of the library datasets, written once for each content.

    Args:
        train: Files of the training split: a path, a pattern such as `data/*.csv`, or several.
        validation: Files of the validation split; None to take a share of the training files.
        test: Files of the test split; None to take a share of the training files.
        text: The column of the texts.
        label: The column of the labels; numbers become strings.
        split: Shares of `validation` and `test` in [0, 1), for those without files; 0 for no test split.
        separator: Between cells of CSV and TSV; None for what the suffix says.
        quote: Around cells of CSV and TSV; None where quotes are ordinary signs.
        cache_dir: Where the Arrow files lie; None for the cache of the library datasets.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    def __init__(
        self,
        train: str | list[str],
        validation: str | list[str] | None,
        test: str | list[str] | None,
        text: str,
        label: str,
        split: Mapping[str, float],
        separator: str | None,
        quote: str | None,
        cache_dir: str | None,
    ) -> None:
        self._given = {"train": train, "validation": validation, "test": test}
        self._columns = {"text": text, "label": label}
        self._shares = {name: float(share) for name, share in split.items() if self._given.get(name) is None}
        self._signs = {"separator": separator, "quote": quote}
        self._cache_dir = cache_dir
        if text == label:
            raise ConfigError(explain("label", "must be another column than data.text", value=label))
        if set(split) != {"validation", "test"}:
            raise ConfigError(explain("split", "must hold validation and test", value=dict(split)))
        for name, share in split.items():
            if not 0 <= share < 1:
                raise ConfigError(explain(f"split.{name}", "must be a share in [0, 1)", value=share))
        if sum(self._shares.values()) >= 1:
            raise ConfigError(explain("split", "leaves nothing to train on", value=dict(split)))
        if self._shares.get("validation") == 0:
            remedy = "Give a share, or name files in data.validation"
            raise ConfigError(explain("split.validation", "a run needs a validation split", remedy, value=0))
        for name, sign in self._signs.items():
            if sign is not None and (len(sign) != 1 or sign in "\r\n"):
                raise ConfigError(explain(name, "must be one character or null", value=sign))

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' contents in their order and of what is read from them; where they lie does not matter."""
        known = (_VERSION, self._columns, self._shares, self._signs)
        digest = blake2b(repr(known).encode(), digest_size=16)
        for split, paths in self._paths.items():
            for path in paths:
                with path.open("rb") as file:
                    content = file_digest(file, "blake2b").hexdigest()
                digest.update(f"\n{split} {suffix_of(path)} {content}".encode())
        return digest.hexdigest()

    def load(self) -> dict[str, Dataset]:
        """The splits, memory-mapped; reads the files unless the cache has them.

        Raises:
            DataError: A file, a row or a column cannot be used, or a split came out empty.
        """
        import datasets

        cache = Path(self._cache_dir or datasets.config.HF_DATASETS_CACHE) / "trainer_files"
        folder = cache / self.fingerprint
        if not folder.is_dir():
            try:
                self._fill(cache, folder)
            except OSError as error:
                problem = f"cannot hold the splits: {error.strerror or error}"
                raise DataError(explain("data.cache_dir", problem, "Name another folder", value=str(cache))) from error
        for name, why, count, row in json.loads((folder / "dropped.json").read_text()):
            _LOG.warning("data.%s: %s are left out: %d, the first is %s", name, why, count, self.where(name, row))
        return {name: datasets.Dataset.from_file(str(folder / f"{name}.arrow")) for name in self._names}

    def where(self, split: str, row: int) -> str:
        """`my.csv, row 18`: the 18th record, the header not counted."""
        file, record = place(row)
        paths = self._paths.get(split) or self._paths["train"]
        return f"{paths[file]}, row {record}"

    def column(self, role: str) -> str:
        """`data.label=category`."""
        return f"data.{role}={self._columns[role]}"

    @property
    def _names(self) -> list[str]:
        """The splits there are: those with files, and those with a share."""
        return [name for name in self._given if self._given[name] is not None or self._shares[name] > 0]

    @cached_property
    def _paths(self) -> dict[str, list[Path]]:
        """The files of each split that has its own."""
        found: dict[str, list[Path]] = {}
        splits: dict[Path, str] = {}
        for split, given in self._given.items():
            if given is None:
                continue
            patterns = [given] if isinstance(given, str) else given
            found[split] = list(dict.fromkeys(path for pattern in patterns for path in _located(split, pattern)))
            if not found[split]:
                raise ConfigError(explain(split, "names no file", value=given))
            for path in found[split]:
                if (other := splits.setdefault(path.resolve(), split)) != split:
                    raise DataError(explain(f"data.{split}", f"names a file of data.{other} too", value=str(path)))
        return found

    def _fill(self, cache: Path, folder: Path) -> None:
        """Makes `folder` in `cache`: it appears complete or not at all."""
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".tmp-", dir=cache) as temporary:
            splits = Path(temporary, "splits")
            splits.mkdir()
            self._write(splits)
            try:
                splits.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, with the same splits
                    raise

    def _write(self, folder: Path) -> None:
        """One pass over all files: `<split>.arrow`, and `dropped.json` with what was left out of which files."""
        from trainer.data.arrow import ArrowSplit

        dropped: dict[str, tuple[int, int]] = {}
        learnt: set[str] = set()
        kept = dict.fromkeys(self._paths, 0)
        with ExitStack() as stack:
            writers = {name: stack.enter_context(ArrowSplit(folder / f"{name}.arrow")) for name in self._names}
            for origin, paths in self._paths.items():
                shares = self._shares if origin == "train" else {}
                for text, label, row in self._rows(origin):
                    if not text or text.isspace() or not label:
                        count, first = dropped.get(origin, (0, row))
                        dropped[origin] = (count + 1, first)
                        continue
                    kept[origin] += 1
                    split = split_of(text, shares) if shares else origin
                    writers[split].add(text, label, row)
                    if split == "train":
                        learnt.add(label)
                if not kept[origin]:
                    problem = f"no row has both {self.column('text')} and {self.column('label')}"
                    raise DataError(explain(str(paths[0]), problem, "Are these the right columns?"))
        for name, writer in writers.items():
            if not writer.num_rows:
                problem = f"of {kept['train']} rows of data.train none came into this split"
                remedy = f"Take more rows or other shares in data.split, or name files in data.{name}"
                raise DataError(explain(f"data.{name}", problem, remedy))
        why = "rows without a text or a label"
        told = [(origin, why, count, row) for origin, (count, row) in dropped.items()]
        told += _without_unlearnt(folder, [name for name, share in self._shares.items() if share > 0], learnt)
        (folder / "dropped.json").write_text(json.dumps(told))

    def _rows(self, split: str) -> Iterator[tuple[str | None, str | None, int]]:
        names = list(self._columns.values())
        for index, path in enumerate(self._paths[split]):
            number = 0
            for number, values in enumerate(records(path, names, **self._signs), 1):
                cells = []
                for name, value in zip(names, values, strict=True):
                    try:
                        cells.append(as_text(value))
                    except ValueError as error:
                        spot = f"{path}, row {number}, column {name!r}"
                        raise DataError(explain(spot, str(error), "Texts and labels are strings or numbers")) from None
                yield cells[0], cells[1], row_id(index, number)
            if not number:
                raise DataError(explain(str(path), "holds no rows", "Name another file"))


def _without_unlearnt(folder: Path, lent: list[str], learnt: set[str]) -> list[tuple[str, str, int, int]]:
    """Takes out of the splits that training lent rows to those whose label stayed in no training row.

    A rare label may fall into them altogether. That is the split's doing, not a fault of the user's file.
    """
    from trainer.data.arrow import keep_labels

    found = []
    for name in lent:
        count, row = keep_labels(folder / f"{name}.arrow", learnt)
        if count:
            found.append((name, "rows with a label that fell to no training row", count, row))
    return found


def _located(split: str, pattern: str) -> list[Path]:
    """The files that a path or a pattern names, in the order of their names.

    Raises:
        DataError: There is none, or one that cannot be read.
    """
    path = Path(pattern).expanduser()
    paths = [path]
    if has_magic(pattern) and not path.exists():
        paths = [Path(name) for name in sorted(glob(str(path), recursive=True)) if Path(name).is_file()]
    if not paths or not paths[0].exists():
        similar = get_close_matches(path.name, _names_in(path.parent), n=1, cutoff=0.5)
        remedy = f"Did you mean {path.parent / similar[0]}" if similar else f"Paths are relative to {Path.cwd()}"
        raise DataError(explain(f"data.{split}", "no such file", remedy, value=pattern))
    for path in paths:
        if path.is_dir():
            remedy = f"Name its files: {path / '*.csv'}"
            raise DataError(explain(f"data.{split}", "expected a file, not a folder", remedy, value=pattern))
        if suffix_of(path) is None:
            problem = "is of no format that can be read"
            raise DataError(explain(str(path), problem, f"Formats: {', '.join(suffixes())}"))
        if not access(path, R_OK):
            raise DataError(explain(str(path), "may not be read by this user", "Change its permissions"))
    return paths


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
