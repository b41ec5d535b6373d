"""Encoded rows to micro-batches, in this process or in workers; the bits are the same for any number of them."""

from __future__ import annotations

import atexit
import multiprocessing
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from trainer.data.plan import BatchIndices, BatchPlan
from trainer.protocols import Batch, Batching, Task, UsesExtraRows
from trainer.sample_rng import SampleRng

if TYPE_CHECKING:
    import datasets
    import pyarrow


@dataclass(frozen=True)
class LoaderOptions:
    """How batches are made, not which.

    Attributes:
        batching: The layout of a micro-batch of texts.
        workers: Processes that make them; 0 makes them in this one.
        prefetch: Micro-batches each worker holds ready.
        pin_memory: Page-locked memory, for copies that overlap with the device's work.
        persistent_workers: Keep evaluation's workers between evaluations.
    """

    batching: Batching
    workers: int
    prefetch: int
    pin_memory: bool
    persistent_workers: bool


class Batches(Dataset[Batch]):
    """A split as a function from a `BatchIndices` to a `Batch`."""

    def __init__(
        self, rows: datasets.Dataset, task: Task, batching: Batching, seed: int, *, training: bool = False
    ) -> None:
        self.rows = rows.with_format("arrow")
        self.task = task
        self.batching = batching
        self.seed = seed
        self.training = training

    def __getitem__(self, part: BatchIndices) -> Batch:
        draws = SampleRng(self.seed, part.epoch, part.ids, self.training, len(self.rows))
        extra = self.task.extra_rows(draws) if isinstance(self.task, UsesExtraRows) else []
        return self.task.collate(columns(self.rows[[*part.ids, *extra]]), draws, self.batching)


class TrainLoader:
    """The micro-batches of the training split, grouped by optimizer step."""

    def __init__(self, batches: Batches, plan: BatchPlan, accumulate: int, options: LoaderOptions) -> None:
        self.plan = plan
        self.batches = batches
        self._accumulate = accumulate
        self._options = options

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step from `start` to before `stop`; one iterator serves all epochs."""
        parts = self.plan.micro_batches(start, stop, self._accumulate)
        stream = iter(_data_loader(self.batches, parts, self._options, persistent=False))
        for step in range(start, stop):
            size = min(self._accumulate, len(self.plan.batch(step).ids))
            yield list(islice(stream, size))


class EvaluationBatches:
    """All rows of a split in their order, `batch_size` a batch; can be iterated again and again until it is closed.

    Workers live from one evaluation to the next where the options say so.
    """

    def __init__(self, batches: Batches, batch_size: int, options: LoaderOptions) -> None:
        ids = np.arange(len(batches.rows)).tolist()
        parts = [BatchIndices(0, tuple(ids[start : start + batch_size])) for start in range(0, len(ids), batch_size)]
        self._loader: DataLoader[Batch] | None = _data_loader(
            batches, parts, options, persistent=options.persistent_workers
        )

    def __iter__(self) -> Iterator[Batch]:
        assert self._loader is not None, "closed"
        return iter(self._loader)

    def close(self) -> None:
        """Ends the workers. Left to the garbage collector, their queues may go before them, and they are waited for."""
        self._loader = None


def columns(table: pyarrow.Table) -> dict[str, Any]:
    """The columns of an Arrow table: numbers as an array (B,), lists as B arrays; no Python object a value."""
    result: dict[str, Any] = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if hasattr(column, "flatten") and hasattr(column, "offsets"):
            offsets = column.offsets.to_numpy()
            values = column.values.to_numpy(zero_copy_only=False)
            result[name] = [values[begin:end] for begin, end in pairwise(offsets)]
        else:
            result[name] = column.to_numpy(zero_copy_only=False)
    return result


def _data_loader(
    batches: Batches, parts: Iterable[BatchIndices], options: LoaderOptions, *, persistent: bool
) -> DataLoader[Batch]:
    return DataLoader(
        batches,
        sampler=parts,
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=options.prefetch if options.workers else None,
        pin_memory=options.pin_memory,
        persistent_workers=persistent and options.workers > 0,
        collate_fn=_unchanged,
        worker_init_fn=_ignore_signals,
        # Without one of its own, a loader draws from torch's global generator, and training moves with it.
        generator=torch.Generator(),
    )


def _unchanged(batch: Any) -> Any:
    return batch


def _ignore_signals(_: int) -> None:
    """A signal to the process group is the main process's to handle: it still needs its workers to end the step."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


@atexit.register
def _kill_workers() -> None:
    """Workers that ignore SIGTERM would keep the interpreter waiting at its exit; they hold nothing to lose."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
