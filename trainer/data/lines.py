"""Texts of plain text files, for language models above all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainer.data.located import Paths, fingerprint_of, located, where
from trainer.data.rows import row_id
from trainer.data.splits import Division, Sample, key_for, read_splits, stored, write_splits
from trainer.data.utf8 import text_lines
from trainer.errors import ConfigError, DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when the same files give other splits."""

_DOCUMENTS = ("line", "blank", "file")


class Lines:
    """Columns `text` and `row` of text files in UTF-8, also as .gz.

    What the training files lend to `validation` and `test` follows from the text alone, as in `data=files`. The splits
    are memory-mapped Arrow files in the cache of the library datasets, written once for each content.

    Args:
        train: Files of the training split: a path, a pattern such as `data/*.txt`, or several.
        validation: Files of the validation split; None to take a share of the training files.
        test: Files of the test split; None to take a share of the training files.
        documents: What a text is: `line` each line that is not blank; `blank` the lines up to a blank one; `file` all
            of a file.
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
        documents: Literal["line", "blank", "file"],
        split: Mapping[str, float],
        cache_dir: str | None,
    ) -> None:
        if documents not in _DOCUMENTS:
            raise ConfigError(format_error("documents", f"must be one of {', '.join(_DOCUMENTS)}", value=documents))
        self._given: Mapping[str, str | list[str] | None] = {"train": train, "validation": validation, "test": test}
        self._division = Division.checked(self._given, split)
        self._documents = documents
        self._cache_dir = cache_dir

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' contents in their order and of how they are read; where they lie does not matter."""
        known = ("lines", _VERSION, self._documents, self._division.shares)
        return fingerprint_of(self._paths, known, lambda path: path.suffix.lower() if path.suffix == ".gz" else "")

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits, memory-mapped; reads the files unless the cache has them.

        Raises:
            DataError: A file cannot be used, or a split came out empty.
        """
        folder = stored(self._cache_dir, "trainer_lines", key_for(self.fingerprint, ["text"]), self._write)
        return read_splits(folder, self._division, self.where)

    def where(self, split: str, row: int) -> str:
        """`my.txt, line 18`, the first of the text."""
        return where(self._paths, split, row, "line")

    def column(self, role: str) -> str:
        """`the column text of data=lines`: its columns have no names of the user's."""
        return f"the column {role} of data=lines"

    def alone(self, split: str, numeric: Mapping[str, bool]) -> Lines | None:
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

    def _write(self, folder: Path) -> None:
        from trainer.data.arrow import schema_of

        def nothing(origin: str) -> DataError:
            return DataError(format_error(str(self._paths[origin][0]), "holds no text", "Name another file"))

        origins = {origin: self._samples(paths) for origin, paths in self._paths.items()}
        write_splits(folder, self._division, schema_of(["text"]), origins, "rows without a text", nothing)

    def _samples(self, paths: Sequence[Path]) -> Iterator[Sample]:
        for index, path in enumerate(paths):
            for line, text in texts(path, self._documents):
                yield Sample(row_id(index, line), {"text": text})


def texts(path: Path, documents: str) -> Iterator[tuple[int, str]]:
    """The texts of a file, each with the number of its first line; no blank ones, and no line ends around them.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    pending: list[str] = []
    first = 1
    for number, line in enumerate(text_lines(path), 1):
        content = line.rstrip("\r\n")
        if documents != "file" and (documents == "line" or not content.strip()):
            if pending:
                yield first, "\n".join(pending)
            pending = []
        if content.strip() or pending:
            first = first if pending else number
            pending.append(content)
    while pending and not pending[-1].strip():
        pending.pop()
    if pending:
        yield first, "\n".join(pending)
