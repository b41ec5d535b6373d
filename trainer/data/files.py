"""Tables in the user's own files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from annotated_types import Len, MinLen

from trainer.constraints import NonEmptyStr, Rule, validated
from trainer.data.cells import (
    ROLE_NOUNS,
    SPLIT_ROLES,
    cell_parser,
    describe_incomplete_rows,
    image_digest,
    unescape_tab,
)
from trainer.data.data_files import DataFiles, FileSource, ValidationFiles
from trainer.data.plausibility import ColumnWarning
from trainer.data.readers import column_names, format_suffix, format_suffixes, read_records
from trainer.data.split_layout import GROUPED_SPLIT_RULES, TIME_RULE, GroupedShares
from trainer.data.splits import row_id, split_schema, write_splits
from trainer.data.table import (
    COLUMN_RULES,
    Record,
    RoleColumns,
    Table,
    describe_columns,
    describe_no_rows,
    fingerprint_columns,
    in_role_order,
    split_columns,
)
from trainer.errors import DataError, format_error
from trainer.layout import expand_home

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 3
"""Increase it if the same files give different splits."""


class Files(FileSource):
    """Columns of CSV, TSV, JSON, JSON Lines, Parquet or Arrow files, each in its role.

    The rows that are held out from the training files for `validation` and `test` are chosen by the inputs of a row
    only (its text, words, features, or the content of its image): duplicates share a split, and neither the order of
    rows nor new rows move any. Rows that lack a required value are dropped with a warning; features and labels may be
    missing. The splits are memory-mapped Arrow files in the cache of the datasets library, written once for each
    content.

    Args:
        train: Files of the training split: a path, a pattern such as `data/*.csv`, or several.
        validation: Files of the validation split, or of several validation sets by name; None holds out a share of the
            training files.
        test: Files of the test split; None holds out a share of the training files.
        text: The column of the texts, or several whose cells become the lines `column: cell` of one text.
        label: The column of the labels; numbers become strings.
        columns: The column of every other role; `value` and `features` may have several. `features` None takes all
            columns without another requested role; any other role None has no column.
        split: Shares of `validation` and `test` in [0, 1), for splits without files; 0 for no test split. `group`: the
            column whose values stay together, in one split and in one fold; `time`: the column whose newest rows are
            held out; `stratify`: the column of the classes that each give their shares; None without one.
        list_separator: The separator of `labels`, `words` and `tags` in one cell; a space means any white space.
        separator: The separator of CSV and TSV cells, `\\t` for a tab; None for the default of the suffix.
        quote: The quote around CSV and TSV cells; None if quotes are ordinary characters.
        cache_dir: The folder of the Arrow files; None for the cache of the datasets library.
    """

    row_noun = "row"
    suffixes = format_suffixes()

    @validated(
        *GROUPED_SPLIT_RULES,
        *COLUMN_RULES,
        TIME_RULE,
        Rule("label not in (text if isinstance(text, list) else [text])", "label", "must differ from data.text"),
        Rule("not isinstance(text, list) or len(set(text)) == len(text)", "text", "must not name a column twice"),
        Rule("separator not in ['\\n', '\\r']", "separator", "must not be a line break"),
        Rule("quote not in ['\\n', '\\r']", "quote", "must not be a line break"),
        Rule(
            "'\\n' not in list_separator and '\\r' not in list_separator",
            "list_separator",
            "must not contain a line break",
        ),
    )
    def __init__(
        self,
        train: DataFiles,
        validation: ValidationFiles | None,
        test: DataFiles | None,
        text: NonEmptyStr | Annotated[list[NonEmptyStr], MinLen(1)],
        label: NonEmptyStr,
        columns: RoleColumns,
        split: GroupedShares,
        list_separator: NonEmptyStr,
        separator: Annotated[str, Len(1, 1)] | Literal["\\t"] | None,
        quote: Annotated[str, Len(1, 1)] | None,
        cache_dir: str | None,
    ) -> None:
        ordered = in_role_order(columns, [role for role in ROLE_NOUNS if role not in ("text", "label")])
        super().__init__(train, validation, test, split, cache_dir)
        self._columns = {"text": text, "label": label, **ordered, **split_columns(split)}
        self._numeric: dict[str, bool] = {}
        self._list_separator = unescape_tab(list_separator)
        self._csv_options: dict[str, Any] = {"separator": separator and unescape_tab(separator), "quote": quote}

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the contents of the files and of the images they name; paths of the files do not matter."""
        digest = blake2b(self._content_fingerprint().encode(), digest_size=16)
        for path in (path for paths in self._paths.values() for path in paths):
            for image in self._image_digests(path):
                digest.update(image.encode())
        return digest.hexdigest()

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the memory-mapped splits; read the files unless the cache has the splits.

        Raises:
            DataError: A file, a row or a column cannot be used, or a split has no rows.
        """
        available = [role for role in (*roles, *SPLIT_ROLES) if role in self._columns]
        folders = [str(path.parent.resolve()) for paths in self._paths.values() for path in paths]
        return self._cached_splits(
            "trainer_files",
            available,
            lambda folder: self._write(folder, available),
            *(folders if "image" in available else ()),
        )

    def describe_role(self, role: str) -> str:
        """Return `data.label=category`, `data.columns.value=price` or `data.split.group=patient`."""
        prefix = "" if role in ("text", "label") else "split." if role in SPLIT_ROLES else "columns."
        return describe_columns(f"{prefix}{role}", self._columns.get(role))

    def column_names(self, split: str) -> list[str]:
        """Return the columns of the first file of a split."""
        return column_names((self._paths.get(split) or self._paths["train"])[0], **self._csv_options)

    def read_columns(self, split: str, names: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        """Yield the column `row` and the cells of some columns, for all rows of the files of a split."""
        table = Table({"slices": names}, {"slices": "slices"}, self._list_separator)
        for row, _, cells in self._records(split if split in self._paths else "train", table):
            yield row, cells

    def for_split(self, split: str, numeric: Mapping[str, bool]) -> Self | None:
        """Return the source that reads the files of one split only; None if the split needs the files of another.

        Args:
            split: The split.
            numeric: For each feature by name, True for numbers and False for texts, as detected in the training files.
        """
        source = super().for_split(split, numeric)
        if source is not None:
            source._numeric = dict(numeric)
            source._columns = self._columns | ({"features": list(numeric)} if numeric else {})
        return source

    def _settings(self) -> tuple[object, ...]:
        columns = fingerprint_columns(self._columns)
        settings = (_VERSION, columns, self._layout.shares, self._csv_options, self._list_separator)
        return (*settings, self._numeric) if self._numeric else settings

    def _format_of(self, path: Path) -> str | None:
        return format_suffix(path)

    def _write(self, folder: Path, roles: Sequence[str]) -> None:
        first, *_ = self._paths.values()
        available = column_names(first[0], **self._csv_options) if "features" in roles else []
        table = Table.for_roles(self._columns, roles, self.describe_role, self._list_separator, available)
        if self._numeric:
            table.numeric.update(self._numeric)
        elif "train" in self._paths:  # a source of another split only has no training data
            table.scan(lambda: self._records("train", table))
        table.find_time_kind(self._records(next(iter(self._paths)), table))

        def no_rows_error(origin: str) -> DataError:
            remedy = "Check the names of the columns"
            return DataError(format_error(str(self._paths[origin][0]), describe_no_rows(table), remedy))

        origins = {
            origin: (table.training_samples if origin == "train" else table.samples)(
                self._records(origin, table), [path.parent for path in paths]
            )
            for origin, paths in self._paths.items()
        }
        schema = split_schema(table.names, table.numeric, table.time.kind)
        incomplete = describe_incomplete_rows(table.names)
        write_splits(
            folder, self._layout, schema, origins, incomplete, no_rows_error, table.warnings, self.describe_row
        )

    def _records(self, split: str, table: Table) -> Iterator[Record]:
        def warn(doubt: str) -> None:
            if all(doubt != warning.message for warning in table.warnings):  # the file may be read twice
                table.warnings.append(ColumnWarning(doubt, row_id(0, 1)))

        for index, path in enumerate(self._paths[split]):
            number = 0
            records = read_records(
                path,
                table.columns,
                **self._csv_options,
                column_remedy=table.column_remedy,
                on_doubt=warn if "train" in self._paths else None,  # warnings name rows of training
            )
            for number, values in enumerate(records, 1):
                yield row_id(index, number), f"{path}, row {number}", values
            if not number:
                raise DataError(format_error(str(path), "has no rows", "Name another file"))

    def _image_digests(self, path: Path) -> Iterator[str]:
        """Yield digests of the images that a file names, if it has their column; `load` reports whatever is broken."""
        column = self._columns["image"]
        parse_image = cell_parser("image", self._list_separator)
        try:
            if not isinstance(column, str) or column not in column_names(path, **self._csv_options):
                return
            for (cell,) in read_records(path, [column], **self._csv_options, column_remedy=""):
                image = parse_image(cell)
                if image is not None and image["bytes"] is None:
                    yield image_digest(image | {"path": path.parent / Path(expand_home(image["path"]))})
        except (DataError, OSError, ValueError):
            return
