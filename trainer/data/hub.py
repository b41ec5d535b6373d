"""Data sets of the Hugging Face hub, and folders in the formats of the datasets library."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from annotated_types import MinLen

from trainer.constraints import DataName, NonEmptyStr, Rule, validated
from trainer.data.cells import ROLE_NOUNS, SPLIT_ROLES, describe_incomplete_rows, unescape_tab
from trainer.data.data_files import content_digest, warn_of_links
from trainer.data.hub_folder import is_saved, raise_if_outside
from trainer.data.line_reader import first_line_of
from trainer.data.readers import check_arrow_file
from trainer.data.split_cache import cache_key, cached_splits
from trainer.data.split_layout import GROUPED_SPLIT_KEYS, GroupedShares, SplitLayout
from trainer.data.splits import row_id, split_row_id, split_schema, write_splits
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
from trainer.errors import DataError, did_you_mean, format_error, raise_if_any
from trainer.hub import is_reachable
from trainer.layout import expand_home
from trainer.validation_sets import by_split, file_stem, name_problems

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_VERSION = 1
"""Increase it if the same data gives different splits."""


class Hub:
    """Columns of a data set that the datasets library can load, each in its role.

    Classes stored as numbers become their names; an unknown class (-1) is missing. Images stay encoded. Rows that lack
    a required value are dropped with a warning; the rows held out from training for `validation` and `test` are chosen
    by the inputs of a row only, as in `data=files`.

    Args:
        path: A data set of the hub such as `stanfordnlp/imdb`, a folder of Parquet, CSV or JSON files, or a folder
            that `save_to_disk` wrote.
        name: The configuration, if the data set has several.
        revision: A branch, tag or commit of the hub; None for the newest.
        splits: The data set's names of `train`, `validation` and `test`; None holds out a share of training. For
            `train`, also several of them, whose rows follow each other; for `validation`, also the data set's names of
            several validation sets by name.
        columns: The column of each role; `text`, `value` and `features` may have several. `features` None takes
            all columns without another requested role; any other role None has no column.
        split: Shares of `validation` and `test` in [0, 1), for splits without a name; 0 for no test split. `group`: the
            column whose values stay together, in one split and in one fold; `time`: the column whose newest rows are
            held out; `stratify`: the column of the classes that each give their shares; None without one.
        list_separator: The separator of `labels`, `words` and `tags` in one text; a space means any white space.
        cache_dir: The folder of downloads and of the Arrow files; None for the cache of the datasets library.
    """

    mixes_splits: ClassVar[bool] = True
    """Entries of `data.mix` are splits of the data set instead of files."""

    @validated(
        *GROUPED_SPLIT_KEYS,
        *COLUMN_RULES,
        Rule(
            "sorted(splits) == ['test', 'train', 'validation']",
            "splits",
            "must have the keys train, validation and test",
        ),
        Rule(
            "split['group'] is None or split['time'] is None"
            " or all(splits[name] is not None or split[name] == 0 for name in ['validation', 'test'])",
            "split.time",
            "a split by time cannot keep the rows of a group together",
            "Set data.split.group=null or data.split.time=null, or name all splits of the data set",
        ),
        Rule(
            "isinstance(splits['train'], str) or isinstance(splits['train'], list)",
            "splits.train",
            "must be the name of a split, or a list of names",
        ),
        Rule(
            "not isinstance(splits['train'], list) or len(set(splits['train'])) == len(splits['train'])",
            "splits.train",
            "must not name a split twice",
            "Leave it out once; data.mix can draw from a split more often",
        ),
        Rule(
            "not isinstance(splits['train'], list)"
            " or all(splits[name] not in splits['train'] for name in ['validation', 'test'])",
            "splits.train",
            "must not name the split of validation or test",
            "Leave it out of one of them",
        ),
        Rule(
            "not isinstance(splits['train'], list) or not isinstance(splits['validation'], dict)"
            " or all(splits['validation'][name] not in splits['train'] for name in splits['validation'])",
            "splits.train",
            "must not name the split of a validation set",
            "Leave it out of one of them",
        ),
        Rule(
            "not isinstance(splits['validation'], list)",
            "splits.validation",
            "must be the name of a split",
            "Name each set: data.splits.validation={{first: <split>, second: <split>}}",
        ),
        Rule(
            "splits['test'] is None or isinstance(splits['test'], str)",
            "splits.test",
            "must be the name of a split",
            "Only data.splits.validation may name several sets",
        ),
        Rule(
            "sum(split[name] for name in ['validation', 'test'] if splits[name] is None) < 1",
            "split",
            "leaves no rows for training",
        ),
        Rule(
            "splits['validation'] is not None or split['validation'] > 0",
            "split.validation",
            "a run needs a validation split",
            "Set a share above 0, or name a split in data.splits.validation",
        ),
    )
    def __init__(
        self,
        path: DataName,
        name: str | None,
        revision: str | None,
        splits: Mapping[
            str, NonEmptyStr | Annotated[list[NonEmptyStr], MinLen(1)] | Mapping[NonEmptyStr, NonEmptyStr] | None
        ],
        columns: RoleColumns,
        split: GroupedShares,
        list_separator: NonEmptyStr,
        cache_dir: str | None,
    ) -> None:
        self._path, self._name, self._revision = path, name, revision
        raise_if_any(*name_problems(splits["validation"], "splits.validation"))
        named: Mapping[str, Any] = {"train": splits["train"], **by_split(splits["validation"]), "test": splits["test"]}
        self._splits: dict[str, str | list[str] | None] = dict(named)
        self._columns = {**in_role_order(columns, list(ROLE_NOUNS)), **split_columns(split)}
        self._list_separator = unescape_tab(list_separator)
        self._cache_dir = cache_dir
        self._layout = SplitLayout.from_arguments(self._splits, split)

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the data and of the way it is read; asks the hub for the revision unless it is offline."""
        columns = fingerprint_columns(self._columns)
        settings = (_VERSION, self._layout.shares, self._splits, columns, self._list_separator)
        digest = blake2b(repr(settings).encode(), digest_size=16)
        folder = self._folder
        if folder is None:
            for rows in (table for tables in self._tables.values() for table in tables):
                # The library's fingerprint depends on the revision, the configuration and the split.
                digest.update(str(rows._fingerprint).encode())
        else:
            digest.update(repr(self._name).encode())
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    digest.update(f"\n{path.relative_to(folder).as_posix()} {content_digest(path)}".encode())
        return digest.hexdigest()

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the memory-mapped splits; download the data set unless the cache has it.

        Raises:
            DataError: The data set cannot be reached, or a row or a column cannot be used.
        """
        available = [role for role in (*roles, *SPLIT_ROLES) if role in self._columns]
        key = cache_key(self.fingerprint, available)
        write = partial(self._write, roles=available)
        return cached_splits(self._cache_dir, "trainer_hub", key, write, self._layout, self.describe_row)

    def describe_row(self, split: str, row: int) -> str:
        """Return `stanfordnlp/imdb, split train, row 18`."""
        number, record = split_row_id(row)
        return f"{self._path}, split {self._names_of(split)[number]}, row {record}"

    def locate_row(self, split: str, row: int) -> tuple[str | None, int]:
        """Return the number of a row in its split of the data set, and the name of that split if training has several.

        The lists of rows that earlier versions wrote name no split.
        """
        number, record = split_row_id(row)
        return (self._names_of(split)[number] if len(self._names_of("train")) > 1 else None), record

    def _names_of(self, split: str) -> list[str]:
        """Return the names in the data set of a split, or of training, from which it is held out."""
        names = self._splits.get(split) or self._splits["train"]
        assert names is not None
        return [names] if isinstance(names, str) else names

    def describe_role(self, role: str) -> str:
        """Return `data.columns.label=sentiment`."""
        return describe_columns(f"{'split' if role in SPLIT_ROLES else 'columns'}.{role}", self._columns.get(role))

    def column_names(self, split: str) -> list[str]:
        """Return the columns of a split."""
        first, *others = self._tables[split if split in self._tables else "train"]
        return [name for name in first.column_names if all(name in rows.column_names for rows in others)]

    def read_columns(self, split: str, names: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        """Yield the column `row` and the cells of some columns, for all rows of a split."""
        table = Table({"slices": names}, {"slices": "slices"}, self._list_separator)
        for row, _, cells in self._records(split if split in self._tables else "train", table):
            yield row, cells

    @property
    def _folder(self) -> Path | None:
        """The folder of the data; None for a data set of the hub."""
        folder = Path(expand_home(self._path))
        return folder if folder.is_dir() else None

    @cached_property
    def _tables(self) -> dict[str, list[Dataset]]:
        """The named splits of the data set, as often as they have names."""
        from datasets import config, disable_progress_bars, load_dataset, load_from_disk

        disable_progress_bars()
        # Its handler prints messages that it also propagates to the run's own log.
        logging.getLogger("huggingface_hub").handlers.clear()
        folder = self._folder
        if folder is not None:
            raise_if_outside(folder)
            warn_of_links("data.path", folder, (path for path in folder.rglob("*") if path.is_symlink()))
            for path in sorted(folder.rglob("*.arrow")):
                check_arrow_file(path)
        if folder is None and not is_reachable():
            # The library would fall back to its cache only after many retries.
            config.HF_HUB_OFFLINE = True
        try:
            if folder is not None and is_saved(folder):
                loaded = load_from_disk(str(folder))
            else:
                loaded = load_dataset(
                    str(folder or self._path), name=self._name, revision=self._revision, cache_dir=self._cache_dir
                )
        except MemoryError:
            raise
        except Exception as error:  # of many types: the library and its readers get the files of anyone
            raise DataError(self._load_problem(error)) from error
        tables: DatasetDict | dict[str, Dataset] = loaded if isinstance(loaded, dict) else {"train": loaded}
        names = {split: self._names_of(split) for split, name in self._splits.items() if name is not None}
        for split, name in ((split, name) for split, several in names.items() for name in several):
            if name not in tables:
                remedy = did_you_mean(name, list(tables))
                if split in ("validation", "test"):
                    remedy += f"; data.splits.{split}=null holds out a share of training"
                raise DataError(
                    format_error(
                        f"data.splits.{file_stem(split)}", "the data set has no such split", remedy, value=name
                    )
                )
        return {split: [tables[name] for name in several] for split, several in names.items()}

    def _load_problem(self, error: Exception) -> str:
        """Return the message for an error of the datasets library."""
        from huggingface_hub import constants

        lines = [line for line in str(error).splitlines() if line.strip()]
        if lines[:1] == ["An error occurred while generating the dataset"]:  # its cause says more
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
            lines = lines[1:] or [first_line_of(cause)]
        text = (lines or [type(error).__name__])[0].strip().rstrip(".")
        is_of_name = isinstance(error, ValueError) and "config" in text.casefold()
        key, value = ("data.name", self._name) if is_of_name else ("data.path", self._path)
        if is_of_name:
            remedy = "Name one of its configurations"
        elif self._folder is not None:
            remedy = "Mend its files, or name them with data=files, which reports the row of an error"
        elif isinstance(error, ConnectionError) and constants.HF_HUB_OFFLINE:
            remedy = "HF_HUB_OFFLINE is set, and the cache has no such data set: unset it, or name a folder"
        elif isinstance(error, ConnectionError):
            remedy = "Without a network, load it on another machine, write it with save_to_disk, and name that folder"
        else:
            remedy = "Name a data set of the hub, or a folder; see https://hf.co/datasets"
        return format_error(key, f"the data set cannot be loaded ({text})", remedy, value=value)

    def _write(self, folder: Path, roles: Sequence[str]) -> None:
        tables = self._tables
        available = self.column_names("train")
        table = Table.for_roles(self._columns, roles, self.describe_role, self._list_separator, available)
        named = [pair for split in tables for pair in zip(self._names_of(split), tables[split], strict=True)]
        for (own_name, rows), (role, names) in itertools.product(named, table.names.items()):
            for name in names:
                if name not in rows.column_names:
                    remedy = did_you_mean(name, list(rows.column_names))
                    key = self.describe_role(role).partition("=")[0]
                    raise DataError(format_error(key, f"split {own_name} has no such column", remedy, value=name))
        table.scan(lambda: self._records("train", table))
        table.find_time_kind(self._records("train", table))

        def no_rows_error(origin: str) -> DataError:
            key = f"data.splits.{file_stem(origin)}"
            remedy = f"Check data.columns, or set {key}=null to hold out a share of training"
            if "/" in origin:
                remedy = f"Check data.columns, or leave {key} out"
            key = f"{key}={','.join(self._names_of(origin))}"
            return DataError(format_error(key, describe_no_rows(table), remedy))

        origins = {
            split: (table.training_samples if split == "train" else table.samples)(self._records(split, table))
            for split in tables
        }
        schema = split_schema(table.names, table.numeric, table.time.kind)
        incomplete = describe_incomplete_rows(table.names)
        write_splits(
            folder, self._layout, schema, origins, incomplete, no_rows_error, table.warnings, self.describe_row
        )

    def _records(self, split: str, table: Table) -> Iterator[Record]:
        for index, rows in enumerate(self._tables[split]):
            for number, cells in enumerate(_read_cells(rows, table.columns), 1):
                row = row_id(index, number)
                yield row, self.describe_row(split, row), cells


def _read_cells(rows: Dataset, columns: Sequence[str]) -> Iterator[list[Any]]:
    """Yield the cells of each row in some columns, with the names of classes instead of their numbers."""
    from datasets import Image

    rows = rows.select_columns(list(dict.fromkeys(columns)))
    for name, feature in dict(rows.features).items():
        if isinstance(feature, Image):
            rows = rows.cast_column(name, Image(decode=False))
    names_of = {name: partial(class_names, feature) for name, feature in rows.features.items() if class_label(feature)}
    for batch in rows.iter(1000):
        for values in zip(*(batch[column] for column in columns), strict=True):
            yield [
                names_of[column](value) if column in names_of else value
                for column, value in zip(columns, values, strict=True)
            ]


def class_label(feature: object) -> Any:
    """Return the ClassLabel of a column of classes or of lists of classes; None for any other column."""
    from datasets import ClassLabel

    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, ClassLabel) else None


def class_names(feature: object, value: Any) -> Any:
    """Return the name of a class, or the names of several; None for an unknown class."""
    if isinstance(value, list):
        return [class_names(feature, item) for item in value]
    return None if value is None or value < 0 else class_label(feature).int2str(value)
