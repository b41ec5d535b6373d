"""Encoding runs once: its result is kept on disk, found again by what went into it, and read memory-mapped."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.data.digests import digests, of_blocks
from trainer.errors import DataError, RowError, format_error
from trainer.protocols import BLOCK_OF, Columns, Source, Task

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_FORMAT = "5"
_INDEX = "index.json"
_SAMPLES = "{split}.samples.parquet"
_NUM_SAMPLES = 4


@dataclass(frozen=True)
class Encoded:
    """Encoded splits.

    Attributes:
        splits: By name; column `row` says where each row came from.
        fingerprint: Changes when the data or what the task does with it changes; whatever the cache holds.
        folder: Where they are kept.
        warnings: What the source warned of when it was read, such as rows that it left out.
        fresh: It was read just now.
    """

    splits: dict[str, Dataset]
    fingerprint: str
    folder: Path
    warnings: list[str]
    fresh: bool

    def samples(self, split: str) -> list[dict[str, Any]]:
        """The first rows of a split, 4 at most, as the source gave them."""
        from pyarrow import parquet

        rows: list[dict[str, Any]] = parquet.read_table(self.folder / _SAMPLES.format(split=split)).to_pylist()
        return rows


def cache_root() -> Path:
    """Where encoded data is kept: `$TRAINER_CACHE`, else `trainer` in the user's cache folder."""
    if root := os.environ.get("TRAINER_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainer"


def encode(source: Source, task: Task, *, limit: int | None, root: Path, fitted: bool) -> Encoded:
    """The encoded splits of `source`; fits `task` on the training split unless it is `fitted` already.

    Args:
        source: The raw data.
        task: What to encode it for; holds its learnt state (labels, tokenizer) afterwards.
        limit: Rows of each split at most; None takes all.
        root: The cache's folder.
        fitted: The task's state came out of a checkpoint and must stay.

    Raises:
        DataError: The data cannot be used.
    """
    parts = [_FORMAT, source.fingerprint, task.fingerprint(), limit]
    folder = root / "encoded" / _digest(parts)
    cached = _read(folder)
    if fitted and (cached is None or cached[0] != task.state_dict()):
        folder = root / "encoded" / _digest([*parts, task.state_dict()])
        cached = _read(folder)
    fresh = cached is None
    if cached is None:
        with _heard() as warnings:
            raw = _prepare(source, task, limit, fitted)
        try:
            _write(folder, source, task, raw, warnings)
        except OSError as error:
            remedy = "Name another folder in the environment variable TRAINER_CACHE"
            raise DataError(format_error(str(root), f"cannot hold the encoded data ({error})", remedy)) from error
        cached = _read(folder)
        if cached is None:
            raise DataError(format_error(str(folder), "cannot be read back", "Remove this folder of the cache"))
    else:
        logger.info("encoded data: taken from %s", folder)
    task.load_state_dict(cached[0])
    return Encoded(cached[1], _digest(parts), folder, cached[2], fresh)


class _Ear(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())


@contextmanager
def _heard() -> Iterator[list[str]]:
    """What is warned of in the block: who takes the result from the cache is to be told, too."""
    ear, place = _Ear(), logging.getLogger(__package__)
    place.addHandler(ear)
    try:
        yield ear.heard
    finally:
        place.removeHandler(ear)


def _prepare(source: Source, task: Task, limit: int | None, fitted: bool) -> dict[str, Dataset]:
    from datasets import disable_progress_bars

    disable_progress_bars()
    raw = _load(source, task)
    if not fitted:
        # Before the limit: a trial then has the labels and the vocabulary of the whole job.
        task.fit(raw["train"])
    if limit is not None:
        raw = {split: rows.select(_spread(len(rows), limit)) for split, rows in raw.items()}
    return raw


def _write(folder: Path, source: Source, task: Task, raw: dict[str, Dataset], warnings: list[str]) -> None:
    """Makes `folder`: it appears complete or not at all."""
    from pyarrow import parquet

    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        sizes = {}
        for split, rows in raw.items():
            sizes[split] = _encode_split(source, task, split, rows, partial / f"{split}.arrow")
            parquet.write_table(rows.with_format("arrow")[:_NUM_SAMPLES], partial / _SAMPLES.format(split=split))
        index = {"state": task.state_dict(), "rows": sizes, "warnings": warnings}
        (partial / _INDEX).write_text(json.dumps(index, ensure_ascii=False), encoding="utf-8")
        try:
            partial.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same data
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("encoded data: %s; kept in %s", ", ".join(f"{name} {size}" for name, size in sizes.items()), folder)


def _spread(size: int, limit: int) -> np.ndarray:
    """At most `limit` of `size` positions, evenly spread: neighbouring rows are often alike."""
    return np.unique(np.linspace(0, size - 1, min(size, limit)).astype(np.int64))


def _load(source: Source, task: Task) -> dict[str, Dataset]:
    raw = source.load(task.columns())
    for split, rows in raw.items():
        missing = [role for role in task.columns() if role not in rows.column_names]
        if missing:
            raise DataError(
                *(
                    format_error(source.column(role), f"the task needs it, the {split} split has none")
                    for role in missing
                )
            )
    return raw


def _encode_split(source: Source, task: Task, split: str, rows: Dataset, file: Path) -> int:
    """Encodes a split into a file; how many rows it has then."""

    def encode_rows(columns: Columns) -> dict[str, list[Any]]:
        try:
            encoded = task.encode(columns)
        except RowError as error:
            place = source.where(split, columns["row"][error.position])
            raise DataError(f"{place}, {source.column(error.role)}: {error}") from error
        known = {**digests(columns, task.columns()), "row": list(columns["row"])}
        blocks = encoded.pop(BLOCK_OF, None)
        return {**encoded, **(known if blocks is None else of_blocks(known, blocks))}

    encoded = rows.map(
        encode_rows,
        batched=True,
        remove_columns=rows.column_names,
        cache_file_name=str(file),
        load_from_cache_file=False,
        # Its own fingerprint would pickle the task; ours is the folder's name.
        new_fingerprint=_digest([file.parent.name, split]),
    )
    return len(encoded)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Dataset], list[str]] | None:
    """The task's state, the splits and the warnings in a folder of the cache; None where there is none.

    A damaged folder is removed here, where it is noticed: later there may be another process's good one in its place.
    """
    from datasets import Dataset

    if not folder.exists():
        return None
    try:
        index = json.loads((folder / _INDEX).read_text(encoding="utf-8"))
        splits = {split: Dataset.from_file(str(folder / f"{split}.arrow")) for split in index["rows"]}
        if {split: len(rows) for split, rows in splits.items()} != index["rows"]:
            raise ValueError("rows are missing")
        return index["state"], splits, index["warnings"]
    except (OSError, ValueError, KeyError) as error:
        logger.warning("encoded data: %s is damaged (%s); encoding again", folder, " ".join(str(error).split()))
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _digest(parts: list[Any]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
