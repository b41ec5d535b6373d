"""Sentences with a tag per word, one word per line, in the format of the CoNLL shared tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.constraints import NonEmptyStr, Rule, validated
from trainer.data.data_files import DataFiles, FileSource, ValidationFiles
from trainer.data.line_reader import read_lines
from trainer.data.split_layout import SPLIT_RULES, Shares
from trainer.data.splits import Sample, row_id, split_schema, write_splits
from trainer.display import counted
from trainer.errors import DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""Increase it if the same files give different splits."""

_DOCUMENT_START = "-DOCSTART-"


class Conll(FileSource):
    """Columns `words`, `tags` and `row` of UTF-8 files, plain or .gz; a blank line ends a sentence.

    Lines that start with `-DOCSTART-` are skipped. The sentences that are held out from the training files for
    `validation` and `test` are chosen by the words only, as in `data=files`. The splits are memory-mapped Arrow files
    in the cache of the datasets library, written once for each content.

    Args:
        train: Files of the training split: a path, a pattern such as `data/*.conll`, or several.
        validation: Files of the validation split, or of several validation sets by name; None holds out a share of the
            training files.
        test: Files of the test split; None holds out a share of the training files.
        word: The column of the words, from 0; negative numbers count from the last column.
        tag: The column of the tags, likewise.
        separator: The separator of the columns; None for any white space.
        comment: The start of lines to skip; None if there are no such lines.
        split: Shares of `validation` and `test` in [0, 1), for splits without files; 0 for no test split.
        cache_dir: The folder of the Arrow files; None for the cache of the datasets library.
    """

    row_noun = "line"

    @validated(
        *SPLIT_RULES,
        Rule("word != tag", "tag", "must differ from data.word"),
        Rule("'\\n' not in separator and '\\r' not in separator", "separator", "must not contain a line break"),
        Rule("'\\n' not in comment and '\\r' not in comment", "comment", "must not contain a line break"),
    )
    def __init__(
        self,
        train: DataFiles,
        validation: ValidationFiles | None,
        test: DataFiles | None,
        word: int,
        tag: int,
        separator: NonEmptyStr | None,
        comment: NonEmptyStr | None,
        split: Shares,
        cache_dir: str | None,
    ) -> None:
        super().__init__(train, validation, test, split, cache_dir)
        self._columns = {"words": word, "tags": tag}
        self._separator = separator
        self._comment = comment

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the memory-mapped splits; read the files unless the cache has the splits.

        Raises:
            DataError: A file or a line cannot be used, or a split has no rows.
        """
        names = ["words", *(["tags"] if "tags" in roles else [])]
        return self._cached_splits("trainer_conll", names, lambda folder: self._write(folder, names))

    def describe_role(self, role: str) -> str:
        """Return `data.tag=-1`."""
        key = {"words": "word", "tags": "tag"}.get(role)
        return f"data.{key}={self._columns[role]}" if key else f"the column {role} of data=conll"

    def _settings(self) -> tuple[object, ...]:
        return ("conll", _VERSION, self._columns, self._separator, self._comment, self._layout.shares)

    def _write(self, folder: Path, names: Sequence[str]) -> None:
        def no_rows_error(origin: str) -> DataError:
            return DataError(format_error(str(self._paths[origin][0]), "contains no sentence", "Name another file"))

        origins = {origin: self._samples(paths) for origin, paths in self._paths.items()}
        write_splits(folder, self._layout, split_schema(names), origins, "sentences without words", no_rows_error)

    def _samples(self, paths: Sequence[Path]) -> Iterator[Sample]:
        for index, path in enumerate(paths):
            for line, cells in self._sentences(path):
                values = {role: [row[column] for row in cells] for role, column in self._columns.items()}
                yield Sample(row_id(index, line), values)

    def _sentences(self, path: Path) -> Iterator[tuple[int, list[list[str]]]]:
        """Yield the cells of each sentence, row by row, with the number of its first line."""
        pending: list[list[str]] = []
        first = num_columns = 0
        for number, line in enumerate(read_lines(path), 1):
            content = line.rstrip("\r\n")
            blank = not content.strip()
            if pending and (blank or content.startswith(_DOCUMENT_START)):
                yield first, pending
                pending = []
            if blank or content.startswith(_DOCUMENT_START) or (self._comment and content.startswith(self._comment)):
                continue
            cells = content.split(self._separator)
            place = f"{path}, line {number}"
            num_columns = num_columns or self._check_columns(place, cells)
            if len(cells) != num_columns:
                problem = f"expected {counted(num_columns, 'column')} as in the lines before"
                raise DataError(format_error(place, problem, "Check data.separator and data.comment", value=len(cells)))
            for role, column in self._columns.items():
                if not cells[column].strip():
                    raise DataError(format_error(f"{place}, {self.describe_role(role)}", "is empty"))
            first = first if pending else number
            pending.append(cells)
        if pending:
            yield first, pending

    def _check_columns(self, place: str, cells: Sequence[str]) -> int:
        """Return the number of columns; check that the configured columns are among them and differ."""
        num_columns = len(cells)
        remedy = "Check data.separator"
        for role, column in self._columns.items():
            if not -num_columns <= column < num_columns:
                problem = f"{self.describe_role(role)} is out of range: the line has {num_columns} columns"
                raise DataError(format_error(place, problem, remedy))
        words, tags = self._columns["words"], self._columns["tags"]
        if words % num_columns == tags % num_columns:
            both = f"{self.describe_role('words')} and {self.describe_role('tags')}"
            problem = f"{both} are the same column: the line has {num_columns} columns"
            raise DataError(format_error(place, problem, remedy))
        return num_columns
