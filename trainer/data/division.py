"""The divisions of training rows that need all of them: by time, or with shares of each class."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from trainer.data.cells import TIME, classes_in
from trainer.display import counted
from trainer.errors import DataError, format_error

if TYPE_CHECKING:
    import numpy as np  # `trainer init` looks at tables without it
    import pyarrow

Assign: TypeAlias = Callable[["pyarrow.RecordBatch"], Mapping[str, "np.ndarray"]]
"""A function that returns for each split a mask of the rows of a batch that belong to it."""


def divide_rows(path: Path, assign: Assign, classes: Mapping[str, set[str]]) -> dict[str, int]:
    """Divide an Arrow file of rows into one for each split, next to it, and return the number of rows of each.

    Args:
        path: The file; it becomes the file of the split `train`.
        assign: Returns the splits of the rows of a batch.
        classes: For each role of classes, receives the classes of the split `train`, and nothing else.
    """
    import pyarrow
    from pyarrow import ipc

    for seen in classes.values():
        seen.clear()
    source = path.rename(path.with_suffix(".all"))
    sizes: dict[str, int] = {}
    writers: dict[str, ipc.RecordBatchStreamWriter] = {}
    with pyarrow.memory_map(str(source)) as file, ipc.open_stream(file) as reader:
        for batch in reader:
            for split, mask in assign(batch).items():
                if split not in writers:
                    writers[split] = ipc.new_stream(str(path.with_name(f"{split}.arrow")), reader.schema)
                rows = batch.filter(pyarrow.array(mask))
                writers[split].write_batch(rows)
                sizes[split] = sizes.get(split, 0) + rows.num_rows
                for role, seen in classes.items() if split == "train" else ():
                    for value in rows[role].to_pylist():
                        seen.update(classes_in(value))
    for writer in writers.values():
        writer.close()
    source.unlink()
    return sizes


def assign_by_time(path: Path, shares: Mapping[str, float]) -> Assign:
    """Return the function that divides the rows of a file by their time; rows of one time stay together.

    The last split of `shares` has the newest rows, the one before it the next ones, `train` the oldest. Each boundary
    is as near to the shares as equal times allow. Takes about 20 bytes of memory for each row.

    Args:
        path: An Arrow file with the column `time`.
        shares: The share of each split except `train`, by count of rows.

    Raises:
        DataError: There are fewer different times than splits.
    """
    import numpy as np

    times = _read_times(path)
    times.sort()
    held_out = [split for split, share in shares.items() if share > 0]
    starts: dict[str, np.generic] = {}
    stop = len(times)
    for num_older, split in reversed(list(enumerate(held_out, 1))):
        start = _find_boundary(times[:stop], shares[split] * len(times), num_older)
        if start is None:
            number = len(np.unique(times))
            problem = f"the {len(times)} rows of training have {counted(number, 'different time')}"
            problem += f", and the splits train, {' and '.join(held_out)} need {len(held_out) + 1}"
            keys = " and ".join(f"data.{split}" for split in held_out)
            remedy = f"Add rows of other times, name a finer column, or name files in {keys}"
            raise DataError(format_error("data.split.time", problem, remedy))
        starts[split], stop = times[start], start

    def assign(batch: pyarrow.RecordBatch) -> dict[str, np.ndarray]:
        own = _as_numbers(batch[TIME])
        number = np.sum([own >= starts[split] for split in held_out], axis=0)
        return {split: number == position for position, split in enumerate(["train", *held_out])}

    return assign


class Strata:
    """The classes of the training rows; each gives the same shares of its rows.

    Takes 12 bytes of memory for each row, and about 90 while the rows are divided.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._classes = array("i")
        self._points = array("d")

    def add(self, name: str, point: float) -> None:
        """Add the next row: its class, and a hash of its inputs in [0, 1]."""
        self._classes.append(self._numbers.setdefault(name, len(self._numbers)))
        self._points.append(point)

    def assign(self, shares: Mapping[str, float]) -> Assign:
        """Return the function that divides the rows, batch by batch in the order in which they were added.

        The rows of a class are ordered by the hash of their inputs, and its first rows are held out. Rows with equal
        inputs share a split. The middle one of them decides it if they have one class, else the class of the first.

        Args:
            shares: The share of each split except `train`.
        """
        import numpy as np

        held_out = [split for split, share in shares.items() if share > 0]
        bounds = np.cumsum([shares[split] for split in held_out])
        inputs, first, inverse, sizes = np.unique(
            np.frombuffer(self._points), return_index=True, return_inverse=True, return_counts=True
        )
        classes = np.frombuffer(self._classes, dtype=np.dtype("i"))[first]
        order = np.lexsort((inputs, classes))
        ends = np.cumsum(sizes[order])
        totals = np.bincount(classes, weights=sizes, minlength=len(self._numbers))
        before = np.concatenate([[0.0], np.cumsum(totals)[:-1]])
        ranks = (ends - sizes[order] / 2 - before[classes[order]]) / totals[classes[order]]
        split_of_input = np.empty(len(inputs), dtype=np.int8)
        # The numbers of `held_out`; one more is training.
        split_of_input[order] = np.searchsorted(bounds, ranks, side="right")
        numbers = split_of_input[inverse]
        start = 0

        def assign(batch: pyarrow.RecordBatch) -> dict[str, np.ndarray]:
            nonlocal start
            own = numbers[start : start + batch.num_rows]
            start += batch.num_rows
            return {split: own == number for number, split in enumerate([*held_out, "train"])}

        return assign


def _read_times(path: Path) -> np.ndarray:
    import numpy as np
    import pyarrow

    with pyarrow.memory_map(str(path)) as file, pyarrow.ipc.open_stream(file) as reader:
        return np.concatenate([_as_numbers(batch[TIME]) for batch in reader])


def _as_numbers(times: pyarrow.Array) -> np.ndarray:
    """Return numbers as they are, and dates as microseconds."""
    import numpy as np
    import pyarrow

    dates = pyarrow.types.is_timestamp(times.type)
    return np.asarray((times.cast(pyarrow.int64()) if dates else times).to_numpy())


def _find_boundary(times: np.ndarray, num_newest: float, num_older: int) -> int | None:
    """Return the position at which the newest rows start, so that at least `num_older` (1 or 2) times are before it.

    Args:
        times: Ascending times.
        num_newest: The number of newest rows to come near to.
        num_older: The number of splits of older rows.
    """
    import numpy as np

    if not len(times):
        return None
    position = max(0, len(times) - max(1, round(num_newest)))
    low, high = (int(np.searchsorted(times, times[position], side)) for side in ("left", "right"))
    start = low if high == len(times) or position - low <= high - position else high
    while start < len(times) and (start == 0 or (num_older == 2 and times[0] == times[start - 1])):
        start = int(np.searchsorted(times, times[start], "right"))
    return start if start < len(times) else None
