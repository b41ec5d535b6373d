"""Data sets of the Hugging Face hub by name, and folders in the formats of the library datasets."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.data.cells import NOUNS, lacks
from trainer.data.located import readable_digest
from trainer.data.rows import place, row_id
from trainer.data.splits import Division, key_for, read_splits, stored, write_splits
from trainer.data.table import Record, Table, all_of, check_columns
from trainer.errors import ConfigError, DataError, did_you_mean, format_error
from trainer.hub import reachable

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

_VERSION = 1
"""To be raised when the same data gives other splits."""

_SPLITS = ("train", "validation", "test")


class Hub:
    """Columns of a data set that the library datasets can load, each in the role that it plays.

    Classes that are stored as numbers become their names; one that is not known (-1) is missing. Images stay encoded.
    Rows that lack what was asked for are left out with a warning; what training lends to `validation` and `test`
    follows from the inputs of a row alone, as in `data=files`.

    Args:
        path: A data set of the hub such as `stanfordnlp/imdb`, a folder of Parquet, CSV or JSON files, or a folder
            that `save_to_disk` wrote.
        name: The configuration, where the data set has several.
        revision: A branch, tag or commit of the hub; None for the newest.
        splits: The data set's names of `train`, `validation` and `test`; None to take a share of training.
        columns: The column of each role, for `value` and `features` perhaps several; `features` None takes all that
            play no other role asked for, any other role None is a role that there is no column for.
        split: Shares of `validation` and `test` in [0, 1), for those without a name in `splits`; 0 for no test split.
        list_separator: Between the parts of `labels`, `words` and `tags` in one text; a space: any white space.
        cache_dir: Where what is downloaded and the Arrow files lie; None for the cache of the library datasets.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    def __init__(
        self,
        path: str,
        name: str | None,
        revision: str | None,
        splits: Mapping[str, str | None],
        columns: Mapping[str, str | list[str] | None],
        split: Mapping[str, float],
        list_separator: str,
        cache_dir: str | None,
    ) -> None:
        self._given = {"path": path, "name": name, "revision": revision}
        self._splits = splits
        self._columns = columns
        self._list_separator = list_separator
        self._cache_dir = cache_dir
        if set(splits) != set(_SPLITS):
            raise ConfigError(format_error("splits", f"must hold {', '.join(_SPLITS)}", value=dict(splits)))
        if splits["train"] is None:
            raise ConfigError(format_error("splits.train", "must be the name of a split", value=None))
        if not list_separator:
            raise ConfigError(format_error("list_separator", "must be one or more characters", value=list_separator))
        check_columns(columns, list(NOUNS))
        self._division = Division.checked({name: splits[name] for name in _SPLITS}, split)

    @cached_property
    def fingerprint(self) -> str:
        """Of the data and of what is read from it; asks the hub for the revision unless it is offline."""
        known = (_VERSION, self._division.shares, self._splits, self._columns, self._list_separator)
        digest = blake2b(repr(known).encode(), digest_size=16)
        folder = self._folder
        if folder is None:
            for split in self._tables.values():
                digest.update(str(split._fingerprint).encode())  # of the revision, the configuration and the split
        else:
            digest.update(repr(self._given["name"]).encode())
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not path.name.startswith("."):
                    digest.update(f"\n{path.relative_to(folder).as_posix()} {readable_digest(path)}".encode())
        return digest.hexdigest()

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits, memory-mapped; downloads the data set unless the cache has it.

        Raises:
            DataError: The data set cannot be reached, or a row or a column cannot be used.
        """
        wanted = [role for role in roles if role in self._columns]
        key = key_for(self.fingerprint, wanted)
        folder = stored(self._cache_dir, "trainer_hub", key, lambda new: self._write(new, wanted))
        return read_splits(folder, self._division, self.where)

    def where(self, split: str, row: int) -> str:
        """`stanfordnlp/imdb, split train, row 18`."""
        return f"{self._given['path']}, split {self._splits.get(split) or self._splits['train']}, row {place(row)[1]}"

    def column(self, role: str) -> str:
        """`data.columns.label=sentiment`."""
        name = self._columns.get(role)
        shown = "null" if name is None else name if isinstance(name, str) else f"[{','.join(name)}]"
        return f"data.columns.{role}={shown}"

    @property
    def _folder(self) -> Path | None:
        """The folder that `path` is; None for a data set of the hub."""
        folder = Path(str(self._given["path"])).expanduser()
        return folder if folder.is_dir() else None

    @cached_property
    def _tables(self) -> dict[str, Dataset]:
        """The data set's splits that are asked for."""
        from datasets import config, disable_progress_bars, load_dataset, load_from_disk

        disable_progress_bars()
        # It prints what it also passes on, which the run's own log shows.
        logging.getLogger("huggingface_hub").handlers.clear()
        folder = self._folder
        if folder is None and not reachable():
            # At once what it would do after many tries: look into its cache.
            config.HF_HUB_OFFLINE = True
        try:
            if folder is not None and any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
                found = load_from_disk(str(folder))
            else:
                given = {**self._given, "path": str(folder or self._given["path"])}
                found = load_dataset(**given, cache_dir=self._cache_dir)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(self._unreachable(error)) from error
        tables: DatasetDict | dict[str, Dataset] = found if isinstance(found, dict) else {"train": found}
        for split, name in self._splits.items():
            if name is not None and name not in tables:
                remedy = did_you_mean(name, list(tables))
                if split != "train":
                    remedy += f"; data.splits.{split}=null takes a share of training"
                raise DataError(
                    format_error(f"data.splits.{split}", "the data set has no such split", remedy, value=name)
                )
        return {split: tables[name] for split, name in self._splits.items() if name is not None}

    def _unreachable(self, error: Exception) -> str:
        """What a failure of the library means, and what to do about it."""
        from huggingface_hub import constants

        text = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        path, name = self._given["path"], self._given["name"]
        if isinstance(error, ValueError):
            key, value, remedy = "data.name", name, "Name one of its configurations"
        elif isinstance(error, ConnectionError) and constants.HF_HUB_OFFLINE:
            remedy = "HF_HUB_OFFLINE is set, and the cache has no such data set: unset it, or name a folder"
            key, value = "data.path", path
        elif isinstance(error, ConnectionError):
            remedy = "Without a network, load it once elsewhere, write it by save_to_disk, and name that folder"
            key, value = "data.path", path
        else:
            key, value, remedy = (
                "data.path",
                path,
                "Name a data set of the hub, or a folder; see https://hf.co/datasets",
            )
        return format_error(key, f"the data set cannot be loaded ({text})", remedy, value=value)

    def _write(self, folder: Path, roles: Sequence[str]) -> None:
        from trainer.data.arrow import schema_of

        tables = self._tables
        names = list(tables["train"].column_names)
        table = Table.of(self._columns, roles, self.column, self._list_separator, names)
        for split, rows in tables.items():
            for role, wanted in table.names.items():
                for name in wanted:
                    if name not in rows.column_names:
                        hint = did_you_mean(name, list(rows.column_names))
                        problem = f"split {self._splits[split]} has no such column"
                        raise DataError(format_error(f"data.columns.{role}", problem, hint, value=name))
        table.learn(lambda: self._records("train", table))

        def nothing(origin: str) -> DataError:
            remedy = f"Are these the right columns? data.splits.{origin}=null takes a share of training"
            return DataError(format_error(f"data.splits.{origin}={self._splits[origin]}", all_of(table), remedy))

        origins = {split: table.samples(self._records(split, table)) for split in tables}
        schema = schema_of(table.names, table.numeric)
        write_splits(folder, self._division, schema, origins, lacks(table.names), nothing)

    def _records(self, split: str, table: Table) -> Iterator[Record]:
        from datasets import Image

        rows = self._tables[split].select_columns(list(dict.fromkeys(table.columns)))
        for name, feature in dict(rows.features).items():
            if isinstance(feature, Image):
                rows = rows.cast_column(name, Image(decode=False))
        named = {name: partial(_named, feature) for name, feature in rows.features.items() if _classes(feature)}
        number = 0
        for batch in rows.iter(1000):
            for values in zip(*(batch[column] for column in table.columns), strict=True):
                number += 1
                cells = [
                    named[column](value) if column in named else value
                    for column, value in zip(table.columns, values, strict=True)
                ]
                yield row_id(0, number), self.where(split, number), cells


def _classes(feature: Any) -> Any:
    """The ClassLabel of a column of classes, or of lists of them."""
    from datasets import ClassLabel

    inner = getattr(feature, "feature", feature)
    return inner if isinstance(inner, ClassLabel) else None


def _named(feature: Any, value: Any) -> Any:
    """The name of a class, or the names of several; None for one that is not known."""
    if isinstance(value, list):
        return [_named(feature, item) for item in value]
    return None if value is None or value < 0 else _classes(feature).int2str(value)
