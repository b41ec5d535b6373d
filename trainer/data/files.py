"""Columns of the user's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.cells import NOUNS, converter, lacks
from trainer.data.images import digest_of
from trainer.data.located import Paths, fingerprint_of, located, where
from trainer.data.readers import column_names, records, suffix_of, suffixes
from trainer.data.rows import row_id
from trainer.data.splits import Division, key_for, read_splits, stored, write_splits
from trainer.data.table import Record, Table, all_of, check_columns
from trainer.errors import ConfigError, DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 3
"""To be raised when the same files give other splits."""


class Files:
    """Columns from CSV, TSV, JSON, JSON Lines, Parquet or Arrow files, each in the role that it plays.

    What the training files lend to `validation` and `test` follows from the inputs of a row alone (its text, words,
    features, the content of its image): duplicates meet in one split, and neither the order of rows nor new ones move
    any. Rows that lack what was asked for are left out with a warning; features and labels may be missing. The splits
    are memory-mapped Arrow files in the cache of the library datasets, written once for each content.

    Args:
        train: Files of the training split: a path, a pattern such as `data/*.csv`, or several.
        validation: Files of the validation split; None to take a share of the training files.
        test: Files of the test split; None to take a share of the training files.
        text: The column of the texts.
        label: The column of the labels; numbers become strings.
        columns: The column of every other role, for `value` and `features` perhaps several; `features` None takes all
            that play no other role asked for, any other role None is a role that there is no column for.
        split: Shares of `validation` and `test` in [0, 1), for those without files; 0 for no test split.
        list_separator: Between the parts of `labels`, `words` and `tags` in one cell; a space: any white space.
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
        columns: Mapping[str, str | list[str] | None],
        split: Mapping[str, float],
        list_separator: str,
        separator: str | None,
        quote: str | None,
        cache_dir: str | None,
    ) -> None:
        self._given: Mapping[str, str | list[str] | None] = {"train": train, "validation": validation, "test": test}
        self._columns = {"text": text, "label": label, **columns}
        self._numeric: dict[str, bool] = {}
        self._list_separator = list_separator
        self._signs = {"separator": separator, "quote": quote}
        self._cache_dir = cache_dir
        if text == label:
            raise ConfigError(format_error("label", "must be another column than data.text", value=label))
        check_columns(columns, [role for role in NOUNS if role not in ("text", "label")])
        self._division = Division.checked(self._given, split)
        if not list_separator or not set(list_separator).isdisjoint("\r\n"):
            raise ConfigError(format_error("list_separator", "must be one or more characters", value=list_separator))
        for name, sign in self._signs.items():
            if sign is not None and (len(sign) != 1 or sign in "\r\n"):
                raise ConfigError(format_error(name, "must be one character or null", value=sign))

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' contents in their order and of what is read from them; where they lie does not matter."""
        known: tuple[object, ...] = (_VERSION, self._columns, self._division.shares, self._signs, self._list_separator)
        known += (self._numeric,) if self._numeric else ()
        digest = blake2b(fingerprint_of(self._paths, known, suffix_of).encode(), digest_size=16)
        for path in (path for paths in self._paths.values() for path in paths):
            for image in self._images(path):
                digest.update(image.encode())
        return digest.hexdigest()

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits, memory-mapped; reads the files unless the cache has them.

        Raises:
            DataError: A file, a row or a column cannot be used, or a split came out empty.
        """
        wanted = [role for role in roles if role in self._columns]
        folders = [str(path.parent.resolve()) for paths in self._paths.values() for path in paths]
        key = key_for(self.fingerprint, wanted, *(folders if "image" in wanted else ()))
        folder = stored(self._cache_dir, "trainer_files", key, lambda new: self._write(new, wanted))
        return read_splits(folder, self._division, self.where)

    def where(self, split: str, row: int) -> str:
        """`my.csv, row 18`: the 18th record, the header not counted."""
        return where(self._paths, split, row, "row")

    def column(self, role: str) -> str:
        """`data.label=category`, `data.columns.value=price`."""
        key = role if role in ("text", "label") else f"columns.{role}"
        name = self._columns.get(role)
        shown = "null" if name is None else name if isinstance(name, str) else f"[{','.join(name)}]"
        return f"data.{key}={shown}"

    def alone(self, split: str, numeric: Mapping[str, bool]) -> Files | None:
        """The same of one split, whose files alone are read; None where it needs those of another.

        Args:
            split: Which.
            numeric: The features by name, and whether each is one of numbers: what was learnt from the training files.
        """
        division = self._division.alone(split)
        if division is None:
            return None
        found = copy(self)
        found._given, found._division, found._numeric = division.given, division, dict(numeric)
        found._columns = self._columns | ({"features": list(numeric)} if numeric else {})
        return found

    @cached_property
    def _paths(self) -> Paths:
        """The files of each split that has its own."""
        return located(self._given, suffixes())

    def _write(self, folder: Path, roles: Sequence[str]) -> None:
        from trainer.data.arrow import schema_of

        first, *_ = self._paths.values()
        known = column_names(first[0], **self._signs) if "features" in roles else []
        table = Table.of(self._columns, roles, self.column, self._list_separator, known)
        if self._numeric:
            table.numeric.update(self._numeric)
        else:
            table.learn(lambda: self._records("train", table))

        def nothing(origin: str) -> DataError:
            remedy = "Are these the right columns?"
            return DataError(format_error(str(self._paths[origin][0]), all_of(table), remedy))

        origins = {
            origin: table.samples(self._records(origin, table), [path.parent for path in paths])
            for origin, paths in self._paths.items()
        }
        schema = schema_of(table.names, table.numeric)
        write_splits(folder, self._division, schema, origins, lacks(table.names), nothing)

    def _records(self, split: str, table: Table) -> Iterator[Record]:
        for index, path in enumerate(self._paths[split]):
            number = 0
            for number, values in enumerate(records(path, table.columns, **self._signs, named_by=table.named_by), 1):
                yield row_id(index, number), f"{path}, row {number}", values
            if not number:
                raise DataError(format_error(str(path), "holds no rows", "Name another file"))

    def _images(self, path: Path) -> Iterator[str]:
        """Digests of the images that a file names, where it has their column; what is broken is said by `load`."""
        column = self._columns["image"]
        image_of = converter("image", self._list_separator)
        try:
            if not isinstance(column, str) or column not in column_names(path, **self._signs):
                return
            for (cell,) in records(path, [column], **self._signs, named_by=""):
                image = image_of(cell)
                if image is not None and image["bytes"] is None:
                    yield digest_of(image | {"path": path.parent / Path(image["path"]).expanduser()})
        except (DataError, OSError, ValueError):
            return
