"""Splits: which rows belong to `train`, `validation` and `test`, in memory or as Arrow files in a cache.

A row held out from the training files is chosen by a hash of its inputs, so that duplicates share a split and neither
the order of rows nor new rows move any; or by a hash of its group, so that a group is in one split.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from trainer.data.cells import CLASS_ROLES, STRATUM, TIME, classes_in, split_key
from trainer.data.division import Strata, assign_by_time, divide_rows
from trainer.data.plausibility import ColumnWarning
from trainer.data.split_layout import SplitLayout
from trainer.display import counted
from trainer.errors import DataError, format_error
from trainer.protocols import EncodedColumns, Row
from trainer.shapes import to_json
from trainer.validation_sets import file_stem

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from datasets import Dataset

_LOG = logging.getLogger(__name__)

_RECORD_BITS = 40
_NUM_SPLITS = 3
_BATCH_BYTES = 4 << 20


def row_id(file: int, record: int) -> int:
    """Return the column `row` (int64): a position in a list of files and a 1-based number within that file."""
    assert 0 <= file < 1 << 23
    assert 0 < record < 1 << _RECORD_BITS
    return file << _RECORD_BITS | record


def split_row_id(row: int) -> tuple[int, int]:
    """Return (file, record), the inverse of `row_id`."""
    return row >> _RECORD_BITS, row & (1 << _RECORD_BITS) - 1


def file_part(rows: np.ndarray) -> np.ndarray:
    """Return the part of columns `row` (N,) that rows of one file share and rows of different files do not."""
    return rows >> _RECORD_BITS


def normalize_whitespace(text: str) -> str:
    """Replace every run of white space by one space; texts that are equal afterwards count as duplicates."""
    return " ".join(text.split())


def assign_split(text: str, shares: Mapping[str, float]) -> str:
    """Return the split of a text, a function of the text only.

    Args:
        text: The text of a row, or the text that stands for its inputs.
        shares: The share of each split except `train`, in [0, 1); `train` takes the rest. A larger share of the last
            split takes its rows from `train` and moves no others.
    """
    return _split_at(_point_of(text), shares)


def _point_of(text: str) -> float:
    """Return a number in [0, 1] for a text; texts that differ only in white space have the same."""
    digest = blake2b(normalize_whitespace(text).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _split_at(point: float, shares: Mapping[str, float]) -> str:
    for split, share in shares.items():
        if point < share:
            return split
        point -= share
    return "train"


class Sample(NamedTuple):
    """A row before it is assigned to a split.

    Attributes:
        row: The column `row`, which identifies the origin of the row.
        values: The value in each role; None for a row that lacks a value and is dropped.
        key: The text that decides the split; None for `split_key(values)`.
    """

    row: int
    values: Row | None
    key: str | None = None


class DroppedRows(NamedTuple):
    """Rows that are in no split: their origin, a description, their number, and the `row` of the first."""

    origin: str
    description: str
    num_rows: int
    row: int


def split_schema(
    roles: Iterable[str], numeric: Mapping[str, bool] | None = None, time_kind: str | None = None
) -> pyarrow.Schema:
    """Return the Arrow schema of the columns of `roles`, followed by `row`.

    Args:
        roles: The columns in order; a name that is not a role is a column of strings.
        numeric: For each feature by name, True for numbers and False for texts; required with the role `features`.
        time_kind: The kind of the role `time`, see `TimeParser`.
    """
    import pyarrow

    strings = pyarrow.list_(pyarrow.string())
    features = [
        (name, pyarrow.float64() if is_number else pyarrow.string()) for name, is_number in (numeric or {}).items()
    ]
    types = {
        **dict.fromkeys(("labels", "words", "tags"), strings),
        "value": pyarrow.list_(pyarrow.float64()),
        "score": pyarrow.float64(),
        "spans": pyarrow.list_(
            pyarrow.struct([("start", pyarrow.int64()), ("end", pyarrow.int64()), ("label", pyarrow.string())])
        ),
        "image": pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()}),
        "features": pyarrow.struct(features),
        TIME: {
            "dates without a zone": pyarrow.timestamp("us"),
            "dates with a zone": pyarrow.timestamp("us", "UTC"),
        }.get(time_kind or "", pyarrow.float64()),
    }
    return pyarrow.schema([*((role, types.get(role, pyarrow.string())) for role in roles), ("row", pyarrow.int64())])


class SplitWriter:
    """A context manager that writes rows to an Arrow stream file, in batches of bounded size.

    Attributes:
        num_rows: Rows written so far.
    """

    def __init__(self, path: Path, schema: pyarrow.Schema) -> None:
        import pyarrow

        self.num_rows = 0
        self._rows: list[Sequence[object]] = []
        self._bytes = 0
        self._schema = schema
        self._writer = pyarrow.ipc.new_stream(str(path), schema)

    def add(self, *values: object) -> None:
        """Write one row, now or with its batch: one value for each column of the schema."""
        self._rows.append(values)
        self.num_rows += 1
        self._bytes += sum(map(_size_of, values))
        if self._bytes > _BATCH_BYTES:
            self._flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error_type is None:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        import pyarrow

        columns = zip(*self._rows, strict=True) if self._rows else ((),) * len(self._schema)
        arrays = [pyarrow.array(values, type=field.type) for values, field in zip(columns, self._schema, strict=True)]
        self._writer.write_batch(pyarrow.record_batch(arrays, schema=self._schema))
        self._rows.clear()
        self._bytes = 0


def _size_of(value: Any) -> int:
    """Return the approximate size of a value as a Python object, in bytes."""
    value_type = type(value)
    if value_type is str or value_type is bytes:
        return 50 + len(value)
    if value_type is dict:
        return sum(map(_size_of, value.values()))
    return sum(map(_size_of, value)) if value_type is list else 50


def drop_unseen_classes(path: Path, role: str, classes: set[str]) -> tuple[int, int]:
    """Remove the rows with a class in `role` (a string or strings) that is not in `classes` from an Arrow file.

    Returns:
        The number of removed rows, and the `row` of the first (-1 if none).
    """
    import pyarrow

    removed, first = 0, -1
    new = path.with_suffix(".kept")
    with (
        pyarrow.memory_map(str(path)) as file,
        pyarrow.ipc.open_stream(file) as reader,
        pyarrow.ipc.new_stream(str(new), reader.schema) as writer,
    ):
        for batch in reader:
            keep = [classes.issuperset(classes_in(value)) for value in batch[role].to_pylist()]
            if not all(keep):
                removed += keep.count(False)
                first = batch["row"][keep.index(False)].as_py() if first < 0 else first
            writer.write_batch(batch.filter(pyarrow.array(keep, type=pyarrow.bool_())))
    new.replace(path)
    return removed, first


def write_splits(
    folder: Path,
    layout: SplitLayout,
    schema: pyarrow.Schema,
    origins: Mapping[str, Iterable[Sample]],
    incomplete: str,
    no_rows_error: Callable[[str], DataError],
    warnings: Sequence[ColumnWarning] = (),
    describe_row: Callable[[str, int], str] | None = None,
) -> None:
    """Write `<split>.arrow` for each split, in one pass over all samples, `dropped.json` and `warnings.json`.

    Args:
        folder: The folder to write to.
        layout: The splits.
        schema: The columns; `row` is the last.
        origins: The samples of each split that has data of its own.
        incomplete: A description of the dropped samples: `rows without a text or a label`.
        no_rows_error: Returns the error for an origin whose samples are all dropped.
        warnings: Warnings about the training data.
        describe_row: Returns the origin of a row of a split; required with warnings.

    Raises:
        DataError: A split has no rows, or an error of the samples.
    """
    roles = schema.names[:-1]
    lowest: list[float] = []
    classes: dict[str, set[str]] = {role: set() for role in CLASS_ROLES if role in roles}
    dropped = []
    kept = dict.fromkeys(origins, 0)
    # Which rows are the newest, or the first of their class, is known only when all are.
    later = (layout.by_time or layout.stratified) and bool(layout.held_out)
    shares, strata = {} if later else layout.shares, Strata()
    with ExitStack() as stack:
        names = origins if later else layout.names
        writers = {
            name: stack.enter_context(SplitWriter(folder / f"{file_stem(name)}.arrow", schema)) for name in names
        }
        for origin, samples in origins.items():
            watched = _watch(samples, strata) if origin == "train" and later and layout.stratified else samples
            assigned = _assign_splits(origin, watched, shares, lowest)
            kept[origin], count, first = _write_rows(assigned, writers, roles, classes)
            if not kept[origin]:
                raise no_rows_error(origin)
            dropped += [DroppedRows(origin, incomplete, count, first)] if count else []
    sizes = {name: writer.num_rows for name, writer in writers.items()}
    with _causes_added(warnings, describe_row):
        if later:
            file = folder / "train.arrow"
            assign = strata.assign(layout.shares) if layout.stratified else assign_by_time(file, layout.shares)
            sizes |= dict.fromkeys(("train", *layout.held_out), 0) | divide_rows(file, assign, classes)
        _check_not_empty(sizes, kept.get("train", 0), layout, lowest)
        for name in layout.held_out:
            dropped += _drop_unseen(folder, name, sizes[name], classes, kept["train"])
    (folder / "dropped.json").write_text(to_json(dropped))
    (folder / "warnings.json").write_text(to_json(warnings))


def _write_rows(
    assigned: Iterable[tuple[str, int, Row | None]],
    writers: Mapping[str, SplitWriter],
    roles: Sequence[str],
    classes: Mapping[str, set[str]],
) -> tuple[int, int, int]:
    """Write the rows with values to the writers of their splits, and add the classes of training rows to `classes`.

    Returns:
        The number of written rows, the number of dropped rows, and the `row` of the first dropped row (-1 without one).
    """
    num_written, num_dropped, first = 0, 0, -1
    for split, row, values in assigned:
        if values is None:
            num_dropped, first = num_dropped + 1, row if first < 0 else first
            continue
        num_written += 1
        writers[split].add(*(values[role] for role in roles), row)
        if split == "train":
            for role, seen in classes.items():
                seen.update(classes_in(values[role]))
    return num_written, num_dropped, first


def _watch(samples: Iterable[Sample], strata: Strata) -> Iterator[Sample]:
    """Yield the samples, and add the class and the point of each that is not dropped to `strata`."""
    for sample in samples:
        if sample.values is not None:
            strata.add(sample.values[STRATUM], _point_of(_key_of(sample)))
        yield sample


def _key_of(sample: Sample) -> str:
    """Return the text that decides the split of a sample with values."""
    assert sample.values is not None
    return (split_key(sample.values) or str(sample.row)) if sample.key is None else sample.key


def _assign_splits(
    origin: str, samples: Iterable[Sample], shares: Mapping[str, float], lowest: list[float]
) -> Iterator[tuple[str, int, Mapping[str, Any] | None]]:
    """Yield the split, the row and the values of each sample; without values, it belongs to no split.

    `lowest` receives the lowest points of the rows that are divided, ascending.
    """
    for sample in samples:
        row, values, _ = sample
        if values is None or not shares or origin != "train":
            yield origin, row, values
            continue
        point = _point_of(_key_of(sample))
        if (len(lowest) < _NUM_SPLITS or point < lowest[-1]) and point not in lowest:
            lowest[:] = sorted([*lowest, point])[:_NUM_SPLITS]
        yield _split_at(point, shares), row, values


@contextmanager
def _causes_added(warnings: Sequence[ColumnWarning], describe_row: Callable[[str, int], str] | None) -> Iterator[None]:
    """Add the warnings about the training data to an error of the block.

    They may say why: numbers that are read as classes have no row of their class in training.
    """
    try:
        yield
    except DataError as error:
        causes = [message.replace("{place}", describe_row("train", row)) for message, row in warnings if describe_row]
        raise DataError(*error.messages, *causes) from None


def _check_not_empty(sizes: Mapping[str, int], num_rows: int, layout: SplitLayout, lowest: Sequence[float]) -> None:
    """Raise DataError if a split has no rows; `lowest` are the lowest points of training rows, ascending."""
    empty = [name for name, size in sizes.items() if not size]
    if not empty:
        return
    asked = ", ".join(f"{name} {share:g}" for name, share in layout.shares.items() if share > 0)
    remedy = "Add rows of other groups" if layout.grouped else "Add rows"
    problem = f"training has {counted(num_rows, 'row')}, and none was assigned to {' and '.join(empty)}"
    if layout.stratified:
        problem += f": the classes are too small for the shares {asked}"
        raise DataError(
            format_error(f"data.split.{STRATUM}", problem, "Name a column of larger classes, or none (null)")
        )
    if layout.held_out and len(lowest) > len(layout.held_out):
        bounds = [_shortest_between(*pair) for pair in itertools.pairwise(lowest)]
        shares = {
            name: bounds[number] - sum(bounds[number - 1 : number]) for number, name in enumerate(layout.held_out)
        }
        keys = " ".join(f"data.split.{name}={share:.12g}" for name, share in shares.items())
        remedy += f", or set {keys} to give each split at least one"
    remedy += "".join(f", or name files in data.{name}" for name in empty if name != "train")
    problem += f" by the shares {asked}{', which hold out whole groups' if layout.grouped else ''}"
    raise DataError(format_error("data.split", problem, remedy))


def _shortest_between(low: float, high: float) -> float:
    """Return the number with the fewest decimals that is above `low` and below `high`."""
    for decimals in range(1, 16):
        number = round(math.floor(low * 10.0**decimals + 1) / 10.0**decimals, decimals)
        if low < number < high:
            return number
    return (low + high) / 2


def _drop_unseen(
    folder: Path, split: str, num_rows: int, classes: Mapping[str, set[str]], num_all: int
) -> list[DroppedRows]:
    """Drop the rows of a held-out split whose class occurs in no training row.

    A rare class may be held out completely. The random split causes this, not a mistake in the user's file.

    Raises:
        DataError: No row is left.
    """
    dropped = []
    for role, known in classes.items():
        count, row = drop_unseen_classes(folder / f"{split}.arrow", role, known)
        if count:
            noun = "tag" if role == "tags" else "label"
            dropped.append(DroppedRows(split, f"rows with a {noun} that occurs in no training row", count, row))
    if sum(item.num_rows for item in dropped) == num_rows:
        num_classes = max(map(len, classes.values()))
        problem = f"contains only {dropped[0].description}: it holds out {num_rows} of {num_all} rows, and the others "
        problem += f"have {counted(num_classes, 'class')}"
        remedy = f"Add rows of each class, or name files in data.{split}"
        raise DataError(format_error(f"data.{split}", problem, remedy))
    return dropped


def read_splits(folder: Path, layout: SplitLayout, describe_row: Callable[[str, int], str]) -> dict[str, Dataset]:
    """Return the memory-mapped splits that `write_splits` wrote; repeat the warnings, and warn about dropped rows."""
    import datasets

    for message, row in json.loads((folder / "warnings.json").read_text()):
        _LOG.warning(message.replace("{place}", describe_row("train", row)))
    for name, description, count, row in json.loads((folder / "dropped.json").read_text()):
        rows = description.replace("rows", "row", 1) if count == 1 else description
        _LOG.warning("data.%s: dropped %d %s; the first is %s", file_stem(name), count, rows, describe_row(name, row))
    return {name: datasets.Dataset.from_file(str(folder / f"{file_stem(name)}.arrow")) for name in layout.names}


def split_in_memory(
    schema: pyarrow.Schema, samples: Iterable[Sample], shares: Mapping[str, float]
) -> dict[str, Dataset]:
    """Return the split `train` and the splits in `shares` in memory, for small data that never changes.

    Args:
        schema: The columns; `row` is the last.
        samples: Samples that all have values.
        shares: The share of each split except `train`.
    """
    from datasets import Dataset, Features

    splits: dict[str, list[Sample]] = {split: [] for split in ("train", *shares)}
    for sample in samples:
        assert sample.values is not None
        splits[assign_split(split_key(sample.values) if sample.key is None else sample.key, shares)].append(sample)
    features = Features.from_arrow_schema(schema)
    datasets = {}
    for split, assigned in splits.items():
        columns: EncodedColumns = {
            name: [sample.values[name] for sample in assigned if sample.values is not None]
            for name in schema.names[:-1]
        }
        rows = [sample.row for sample in assigned]
        datasets[split] = Dataset.from_dict({**columns, "row": rows}, features=features)
    return datasets
