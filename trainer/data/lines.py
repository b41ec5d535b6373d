"""Texts in plain text files, mainly for language models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from trainer.constraints import validated
from trainer.data.data_files import DataFiles, FileSource, ValidationFiles
from trainer.data.line_reader import read_lines
from trainer.data.split_layout import SPLIT_RULES, Shares
from trainer.data.splits import Sample, row_id, split_schema, write_splits
from trainer.errors import DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""Increase it if the same files give different splits."""


class Lines(FileSource):
    """Columns `text` and `row` of UTF-8 text files, plain or .gz.

    The texts that are held out from the training files for `validation` and `test` are chosen by the text only, as in
    `data=files`. The splits are memory-mapped Arrow files in the cache of the datasets library, written once for each
    content.

    Args:
        train: Files of the training split: a path, a pattern such as `data/*.txt`, or several.
        validation: Files of the validation split, or of several validation sets by name; None holds out a share of the
            training files.
        test: Files of the test split; None holds out a share of the training files.
        documents: The unit that becomes one text: `line`, every line that is not blank; `blank`, the lines up to a
            blank one; `file`, a whole file.
        split: Shares of `validation` and `test` in [0, 1), for splits without files; 0 for no test split.
        cache_dir: The folder of the Arrow files; None for the cache of the datasets library.
    """

    row_noun = "line"

    @validated(*SPLIT_RULES)
    def __init__(
        self,
        train: DataFiles,
        validation: ValidationFiles | None,
        test: DataFiles | None,
        documents: Literal["line", "blank", "file"],
        split: Shares,
        cache_dir: str | None,
    ) -> None:
        super().__init__(train, validation, test, split, cache_dir)
        self._documents = documents

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the memory-mapped splits; read the files unless the cache has the splits.

        Raises:
            DataError: A file cannot be used, or a split has no rows.
        """
        return self._cached_splits("trainer_lines", ["text"], self._write)

    def describe_role(self, role: str) -> str:
        """Return `the column text of data=lines`: the user does not name its columns."""
        return f"the column {role} of data=lines"

    def _settings(self) -> tuple[object, ...]:
        return ("lines", _VERSION, self._documents, self._layout.shares)

    def _write(self, folder: Path) -> None:
        def no_rows_error(origin: str) -> DataError:
            return DataError(format_error(str(self._paths[origin][0]), "contains no text", "Name another file"))

        origins = {origin: self._samples(paths) for origin, paths in self._paths.items()}
        write_splits(folder, self._layout, split_schema(["text"]), origins, "rows without a text", no_rows_error)

    def _samples(self, paths: Sequence[Path]) -> Iterator[Sample]:
        for index, path in enumerate(paths):
            for line, text in read_texts(path, self._documents):
                yield Sample(row_id(index, line), {"text": text})


def read_texts(path: Path, documents: str) -> Iterator[tuple[int, str]]:
    """Yield the texts of a file with the number of their first line; no text is blank or ends in a line break.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    pending: list[str] = []
    first = 1
    for number, line in enumerate(read_lines(path), 1):
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
