"""Sentences with a tag for each word, one word a line, as the CoNLL shared tasks write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.data.located import Paths, fingerprint_of, located, where
from trainer.data.rows import row_id
from trainer.data.splits import Division, Sample, key_for, read_splits, stored, write_splits
from trainer.data.utf8 import text_lines
from trainer.errors import ConfigError, DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when the same files give other splits."""

_DOCUMENT = "-DOCSTART-"


class Conll:
    """Columns `words`, `tags` and `row` of files in UTF-8, also as .gz: a blank line ends a sentence.

    Lines that begin with `-DOCSTART-` are passed over. What the training files lend to `validation` and `test` follows
    from the words alone, as in `data=files`. The splits are memory-mapped Arrow files in the cache of the library
    datasets, written once for each content.

    Args:
        train: Files of the training split: a path, a pattern such as `data/*.conll`, or several.
        validation: Files of the validation split; None to take a share of the training files.
        test: Files of the test split; None to take a share of the training files.
        word: The column of the words, from 0; negative ones count from the last.
        tag: The column of the tags, likewise.
        separator: Between columns; None for any white space.
        comment: What the lines begin with that are passed over; None for no such lines.
        split: Shares of `validation` and `test` in [0, 1), for those without files; 0 for no test split.
        cache_dir: Where the Arrow files lie; None for the cache of the library datasets.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    def __init__(
        self,
        train: str | list[str],
        validation: str | list[str] | None,
        test: str | list[str] | None,
        word: int,
        tag: int,
        separator: str | None,
        comment: str | None,
        split: Mapping[str, float],
        cache_dir: str | None,
    ) -> None:
        self._given: Mapping[str, str | list[str] | None] = {"train": train, "validation": validation, "test": test}
        self._columns = {"words": word, "tags": tag}
        self._separator = separator
        self._comment = comment
        self._cache_dir = cache_dir
        if word == tag:
            raise ConfigError(format_error("tag", "must be another column than data.word", value=tag))
        for name, sign in {"separator": separator, "comment": comment}.items():
            if sign is not None and (not sign or not set(sign).isdisjoint("\r\n")):
                raise ConfigError(format_error(name, "must be one or more characters of a line, or null", value=sign))
        self._division = Division.checked(self._given, split)

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' contents in their order and of how they are read; where they lie does not matter."""
        known = ("conll", _VERSION, self._columns, self._separator, self._comment, self._division.shares)
        return fingerprint_of(self._paths, known, lambda path: path.suffix.lower() if path.suffix == ".gz" else "")

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits, memory-mapped; reads the files unless the cache has them.

        Raises:
            DataError: A file or a line cannot be used, or a split came out empty.
        """
        names = ["words", *(["tags"] if "tags" in roles else [])]
        key = key_for(self.fingerprint, names)
        folder = stored(self._cache_dir, "trainer_conll", key, lambda new: self._write(new, names))
        return read_splits(folder, self._division, self.where)

    def where(self, split: str, row: int) -> str:
        """`my.conll, line 18`, the first of the sentence."""
        return where(self._paths, split, row, "line")

    def column(self, role: str) -> str:
        """`data.tag=-1`."""
        key = {"words": "word", "tags": "tag"}.get(role)
        return f"data.{key}={self._columns[role]}" if key else f"the column {role} of data=conll"

    def alone(self, split: str, numeric: Mapping[str, bool]) -> Conll | None:
        """The same of one split, whose files alone are read; None where it needs those of another."""
        division = self._division.alone(split)
        if division is None:
            return None
        found = copy(self)
        found._given, found._division = division.given, division
        return found

    @cached_property
    def _paths(self) -> Paths:
        return located(self._given, None)

    def _write(self, folder: Path, names: Sequence[str]) -> None:
        from trainer.data.arrow import schema_of

        def nothing(origin: str) -> DataError:
            return DataError(format_error(str(self._paths[origin][0]), "holds no sentence", "Name another file"))

        origins = {origin: self._samples(paths) for origin, paths in self._paths.items()}
        write_splits(folder, self._division, schema_of(names), origins, "sentences without words", nothing)

    def _samples(self, paths: Sequence[Path]) -> Iterator[Sample]:
        for index, path in enumerate(paths):
            for line, cells in self._sentences(path):
                values = {role: [row[column] for row in cells] for role, column in self._columns.items()}
                yield Sample(row_id(index, line), values)

    def _sentences(self, path: Path) -> Iterator[tuple[int, list[list[str]]]]:
        """The rows of each sentence, with the number of its first line."""
        pending: list[list[str]] = []
        first = width = 0
        for number, line in enumerate(text_lines(path), 1):
            content = line.rstrip("\r\n")
            blank = not content.strip()
            if pending and (blank or content.startswith(_DOCUMENT)):
                yield first, pending
                pending = []
            if blank or content.startswith(_DOCUMENT) or (self._comment and content.startswith(self._comment)):
                continue
            cells = content.split(self._separator)
            width = width or self._checked_width(f"{path}, line {number}", cells)
            if len(cells) != width:
                problem = f"expected {width} columns as in the lines before"
                remedy = "Is data.separator right, and data.comment?"
                raise DataError(format_error(f"{path}, line {number}", problem, remedy, value=len(cells)))
            for role, column in self._columns.items():
                if not cells[column].strip():
                    raise DataError(format_error(f"{path}, line {number}, {self.column(role)}", "is empty"))
            first = first if pending else number
            pending.append(cells)
        if pending:
            yield first, pending

    def _checked_width(self, spot: str, cells: Sequence[str]) -> int:
        """The number of columns, where those wanted are among them and differ."""
        width = len(cells)
        for role, column in self._columns.items():
            if not -width <= column < width:
                problem = f"{self.column(role)} is no column of {width}"
                raise DataError(format_error(spot, problem, "Is data.separator right?"))
        if self._columns["words"] % width == self._columns["tags"] % width:
            problem = f"{self.column('words')} and {self.column('tags')} are one column of {width}"
            raise DataError(format_error(spot, problem, "Is data.separator right?"))
        return width
