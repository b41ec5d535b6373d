"""The encoding cache: encode each data set once, keep the result on disk, and read it memory-mapped afterwards.

The name of a cache folder is a digest of everything that the encoding depends on.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from trainer import __version__
from trainer.data import split_cache
from trainer.data.quality import block_digests, row_digests
from trainer.data.split_cache import read_index, write_index
from trainer.display import counted
from trainer.errors import DataError, RowError, RowErrors, format_error, show_value
from trainer.files.atomic_io import discard, replaced_folder
from trainer.files.mapped import MappedRows, release_pages
from trainer.files.untrusted import LIMITS
from trainer.progress import phase
from trainer.protocols import BLOCK_OF, Columns, EncodedColumns, HasColumns, LocatesRows, Row, Source, StateDict, Task
from trainer.shapes import check_shape
from trainer.validation_sets import file_stem

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_FORMAT = "5"
_SHAPE: Final = {"state": {str: object}, "rows": {str: int}, "warnings": [str]}
"""The shape of the fields in the index of a cache folder."""

_FOLDER = (3, __version__)
"""Increase the number if the same data is encoded otherwise; unlike `_FORMAT` it leaves the fingerprints of old runs
alone. Another version of the program may have other things to say about the data, so it reads the data again."""

_SAMPLES = "{split}.samples.parquet"
_NUM_SAMPLES = 4

_ROWS_AT_ONCE = 1000
_BLOCK_VALUES = 2**20


_Stored: TypeAlias = "tuple[StateDict, dict[str, MappedRows], list[str]]"
"""The content of a cache folder: the task's state, the splits and the warnings."""


@dataclass(frozen=True)
class Encoded:
    """Encoded splits.

    Attributes:
        splits: The rows by split; column `row` identifies the raw row of each.
        fingerprint: Digest of the data and of the encoding; does not depend on the state of the cache.
        folder: The folder of the files.
        warnings: The warnings of the source when it was read, such as dropped rows.
        unlogged: The part of `warnings` that only an earlier call has logged, as the data came from the cache.
        source: The source of the data.
    """

    splits: dict[str, MappedRows]
    fingerprint: str
    folder: Path
    warnings: list[str]
    unlogged: list[str]
    source: Source

    def origins(self, split: str, positions: Sequence[int]) -> tuple[list[str | None], list[int | None]]:
        """Return the file and the record number of the rows at some positions of a split; None if they are unknown."""
        if not isinstance(self.source, LocatesRows):
            return [None] * len(positions), [None] * len(positions)
        column = self.splits[split].data.column("row")
        places = [self.source.locate_row(split, column[position].as_py()) for position in positions]
        return [file for file, _ in places], [record for _, record in places]

    def describe(self, split: str, position: int) -> str:
        """Return the origin of the row at a position of a split: `my.csv, row 18`."""
        return self.source.describe_row(split, self.splits[split].data.column("row")[position].as_py())

    def read_cells(self, split: str, columns: Sequence[str]) -> list[Sequence[object]]:
        """Return the cells of each row of a split in some columns, which the source must have."""
        assert isinstance(self.source, HasColumns)
        rows = self.splits[split].data.column("row").to_pylist()
        needed = set(rows)
        cells = {row: values for row, values in self.source.read_columns(split, columns) if row in needed}
        return [cells[row] for row in rows]

    def samples(self, split: str) -> list[Row]:
        """Return the first raw rows of a split, at most 4."""
        from pyarrow import parquet

        rows: list[Row] = parquet.read_table(self.folder / _SAMPLES.format(split=file_stem(split))).to_pylist()
        return rows


def cache_root() -> Path:
    """Return the cache's folder: `$TRAINER_CACHE`, else `trainer` in the user's cache folder."""
    if root := os.environ.get("TRAINER_CACHE"):
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainer"


def encode(
    source: Source,
    task: Task,
    *,
    limit: int | None,
    root: Path,
    fitted: bool,
    drop_broken: bool = False,
    check: Callable[[], None] | None = None,
) -> Encoded:
    """Return the encoded splits of `source`; fit `task` on the training split unless it is `fitted` already.

    Args:
        source: The raw data.
        task: The task that encodes the data; it has its fitted state (labels, tokenizer) afterwards.
        limit: Maximum number of rows of each split; None takes all.
        root: The cache's folder.
        fitted: True if the task's state came from a checkpoint and must not change.
        drop_broken: Leave out rows that cannot be encoded, with a warning.
        check: Raises an error about the rest of the job; called with a fitted task before any row is encoded.

    Raises:
        DataError: The data cannot be used.
    """
    with _recorded_warnings() as logged:
        parts = [_FORMAT, source.fingerprint, task.fingerprint(), limit]
        # The limits decide which rows are broken.
        parts += ["drop_broken", LIMITS.line_bytes, LIMITS.pixels] if drop_broken else []
        folder = root / "encoded" / _digest([*parts, *_FOLDER])
        # Warnings of the fingerprint come with every start, and may be about files that it skips.
        repeated = logged.copy()
        logged.clear()
        cached = _read(folder)
        if fitted and (cached is None or cached[0] != task.state_dict()):
            folder = root / "encoded" / _digest([*parts, *_FOLDER, task.state_dict()])
            cached = _read(folder)
        is_new = False
        if cached is None:
            with _locked(folder):
                cached = _read(folder)
                is_new = cached is None
                if cached is None:
                    with phase("reading the data"):
                        raw = _prepare(source, task, limit, fitted)
                    if check is not None:
                        check()
                    cached = _write(folder, source, task, raw, logged, drop_broken=drop_broken)
    if not is_new:
        logger.info("encoded data: reused from %s", folder)
    state, splits, warnings = cached
    task.load_state_dict(state)
    unlogged = [warning for warning in warnings if warning not in (*repeated, *logged)]
    return Encoded(splits, _digest(parts), folder, list(dict.fromkeys([*repeated, *warnings])), unlogged, source)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Wait until no other process encodes the data of a cache folder. A process that ends releases its lock."""
    path = folder.with_name(f"{folder.name}.lock")
    with ExitStack() as stack:
        # On a file system without locks, each process encodes for itself; the first one that is done stores the result.
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "w", opener=lambda name, flags: os.open(name, flags, 0o600)))
            fcntl.flock(file, fcntl.LOCK_EX)
            # Whoever waits for the removed file finds the data in the cache.
            stack.callback(discard, path)
        yield


class _WarningRecorder(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != split_cache.__name__:  # the state of a cache is no property of the data
            self.messages.append(record.getMessage())
        # Python prints warnings only as long as there is no handler at all, and this one would be the first.
        if not logging.getLogger().handlers and logging.lastResort is not None:
            logging.lastResort.handle(record)


@contextmanager
def _recorded_warnings() -> Iterator[list[str]]:
    """Record the warnings of this package in the block, so that a later cache hit can repeat them."""
    recorder, package_logger = _WarningRecorder(), logging.getLogger(__package__)
    package_logger.addHandler(recorder)
    try:
        yield recorder.messages
    finally:
        package_logger.removeHandler(recorder)


def _prepare(source: Source, task: Task, limit: int | None, fitted: bool) -> dict[str, Dataset]:
    from datasets import disable_progress_bars

    disable_progress_bars()
    raw = _load(source, task)
    if not fitted:
        # Before the limit applies: a trial then has the labels and the vocabulary of the whole job.
        task.fit(raw["train"])
    if limit is not None:
        raw = {split: rows.select(_evenly_spaced(len(rows), limit)) for split, rows in raw.items()}
    return raw


def _write(
    folder: Path, source: Source, task: Task, raw: dict[str, Dataset], warnings: list[str], *, drop_broken: bool
) -> _Stored:
    """Write `folder` atomically, so that it appears complete or not at all, and read it back."""
    from pyarrow import parquet

    sizes = {}
    errors = RowErrors()
    with replaced_folder(folder, _storage_error, is_cache=True) as stage:
        for split, every in raw.items():
            rows, file = every, stage / f"{file_stem(split)}.arrow"
            try:
                sizes[split] = _encode_split(task, rows, file)
            except RowError:
                rows = rows.select(_find_usable(source, task, split, rows, errors))
                if not drop_broken or not len(rows):
                    continue
                sizes[split] = _encode_split(task, rows, file)
            parquet.write_table(
                rows.with_format("arrow")[:_NUM_SAMPLES], stage / _SAMPLES.format(split=file_stem(split))
            )
        if len(sizes) < len(raw):
            raise _broken_rows_error(errors, [split for split in raw if split not in sizes], drop_broken)
        if errors:
            message = "data.drop_broken: left out %s that cannot be encoded:\n%s"
            logger.warning(message, counted(len(errors), "row"), "\n".join(errors.messages()))
        write_index(stage, state=task.state_dict(), rows=sizes, warnings=warnings)
    logger.info("encoded data: %s; stored in %s", ", ".join(f"{name} {size}" for name, size in sizes.items()), folder)
    if (stored := _read(folder)) is None:
        raise DataError(format_error(str(folder), "cannot be read back", "Delete this folder of the cache"))
    return stored


def _storage_error(message: str) -> DataError:
    return DataError(f"{message} Or name another folder in the environment variable TRAINER_CACHE.")


def _evenly_spaced(size: int, limit: int) -> np.ndarray:
    """Return at most `limit` of `size` positions, evenly spaced, because neighboring rows are often similar."""
    return np.unique(np.linspace(0, size - 1, min(size, limit)).astype(np.int64))


def _load(source: Source, task: Task) -> dict[str, Dataset]:
    raw = source.load(task.columns())
    for split, rows in raw.items():
        missing = [role for role in task.columns() if role not in rows.column_names]
        if missing:
            problem = f"is not in the {split} split, but the task requires it"
            remedy = "Choose other data"
            raise DataError(*(format_error(source.describe_role(role), problem, remedy) for role in missing))
    return raw


def _broken_rows_error(errors: RowErrors, splits: Sequence[str], drop_broken: bool) -> DataError:
    """Return the error that lists broken rows of all splits; `splits` have no other rows, or must not lose any."""
    if drop_broken:
        return DataError(*errors.messages(), f"data.{file_stem(splits[0])}: all rows are left out by data.drop_broken.")
    remedy = "Correct or remove them, or set data.drop_broken=true to leave them out"
    summary = format_error(
        "data.drop_broken", f"{counted(len(errors), 'row')} cannot be encoded", remedy, value=drop_broken
    )
    return DataError(*errors.messages(), summary)


def _encode_split(task: Task, rows: Dataset, file: Path) -> int:
    """Encode a split into a file and return the number of encoded rows.

    Raises:
        RowError: A row cannot be encoded.
    """
    import pyarrow
    from datasets.arrow_writer import ArrowWriter

    done = 0

    def encode_rows(columns: Columns) -> EncodedColumns:
        nonlocal done
        encoded = task.encode(columns)
        done += len(columns["row"])
        advance(done)
        digests = {**row_digests(columns, task.columns()), "row": list(columns["row"])}
        blocks = encoded.pop(BLOCK_OF, None)
        return {**encoded, **(digests if blocks is None else block_digests(digests, blocks))}

    if not len(rows):
        with pyarrow.ipc.new_stream(str(file), pyarrow.schema([])):
            return 0
    with phase(f"encoding the {file.stem} rows", len(rows)) as advance, ArrowWriter(path=str(file)) as writer:
        for columns in _merge(map(encode_rows, rows.iter(_ROWS_AT_ONCE))):
            writer.write_batch(columns, writer_batch_size=len(columns["row"]))
        num_rows, _ = writer.finalize()
    return int(num_rows)


def _merge(encoded: Iterable[EncodedColumns]) -> Iterator[EncodedColumns]:
    """Join encoded rows to blocks of about `_BLOCK_VALUES` numbers or bytes.

    A file of many small blocks takes memory for the description of each as long as it is mapped.
    """
    block: EncodedColumns = {}
    size = 0
    for columns in encoded:
        for name, values in columns.items():
            block.setdefault(name, []).extend(values)
            has_length = any(hasattr(value, "__len__") for value in values[:1])  # a column has values of one kind
            size += sum(map(len, values)) if has_length else len(values)
        if size >= _BLOCK_VALUES:
            yield block
            block, size = {}, 0
    if block:
        yield block


def _find_usable(source: Source, task: Task, split: str, rows: Dataset, errors: RowErrors) -> list[int]:
    """Return the positions of the rows that can be encoded one by one; add the errors of the others."""
    usable = []
    for position in range(len(rows)):
        columns = rows[position : position + 1]
        try:
            task.encode(columns)
            usable.append(position)
        except RowError as error:
            row = source.describe_row(split, columns["row"][0])
            # The description of the role takes the place of its name, and the row may be the file that is the value.
            reason = str(error).removeprefix(f"{error.role}: ").replace(f", got {show_value(row)}", "")
            errors.add(f"{row}, {source.describe_role(error.role)}: {reason}", str(error))
    return usable


def _read(folder: Path) -> _Stored | None:
    """Return the task's state, the splits and the warnings in a cache folder; None if the folder does not exist.

    A damaged folder is deleted at once: later, another process may have put an intact one in its place.
    """
    index = read_index(folder)
    if index is None:
        return None
    try:
        check_shape(index, _SHAPE)
        splits = {split: MappedRows.from_file(str(folder / f"{file_stem(split)}.arrow")) for split in index["rows"]}
        if {split: len(rows) for split, rows in splits.items()} != index["rows"]:
            raise ValueError("rows are missing")
        for rows in splits.values():
            release_pages(rows)  # opening a file touches every record batch of it
        return index["state"], splits, index["warnings"]
    except (OSError, ValueError) as error:
        logger.warning("encoded data: %s is damaged (%s); encoding again", folder, " ".join(str(error).split()))
        discard(folder)
        return None


def _digest(parts: Sequence[object]) -> str:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=12).hexdigest()
