"""The loader of encoded rows, in this process or in workers: it gives the same bits for any number of workers."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from trainer.data.batch_plan import BatchIndices, BatchPlan, split_batch
from trainer.distributed.ranks import Ranks
from trainer.files.mapped import MappedRows, RowReader
from trainer.progress import track
from trainer.protocols import Batch, Batching, HasByteBatches, Task, UsesExtraRows
from trainer.sample_rng import SampleRng
from trainer.signals import STOP_SIGNALS, end_with_parent_thread

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True)
class LoaderOptions:
    """Options for loading batches; only `batching` changes a batch, and only its layout.

    Attributes:
        batching: The layout of a micro-batch of texts.
        workers: Number of worker processes; 0 loads in this process.
        prefetch: Micro-batches that each worker keeps ready.
        pin_memory: Use page-locked memory, so that copies overlap with the device's work.
        persistent_workers: Keep the evaluation workers between evaluations.
        timeout: Seconds to wait for a batch of a worker, at least 60 for the first one; 0 waits forever.
    """

    batching: Batching
    workers: int
    prefetch: int
    pin_memory: bool
    persistent_workers: bool
    timeout: float = 0.0


class Batches(Dataset[Batch]):
    """A split as a map from `BatchIndices` to `Batch`.

    Args:
        rows: The encoded split.
        task: Makes a batch of rows.
        batching: The layout of a batch.
        seed: The run's seed.
        training: The batches are for training: a task may draw random numbers.
        complete: Brings a batch to a fixed shape; None leaves it as it is.
        as_bytes: Leave the standardization of images to the device, if the task can.
    """

    def __init__(
        self,
        rows: datasets.Dataset | MappedRows,
        task: Task,
        batching: Batching,
        seed: int,
        *,
        training: bool = False,
        complete: Callable[[Batch], Batch] | None = None,
        as_bytes: bool = False,
    ) -> None:
        self.rows = rows
        self.task = task
        self.batching = batching
        self.seed = seed
        self.training = training
        self.complete = complete
        self.as_bytes = as_bytes
        self._extra_rows = task.extra_rows if isinstance(task, UsesExtraRows) else None

    def __getitem__(self, indices: BatchIndices) -> Batch:
        rng = SampleRng(self.seed, indices.epoch, indices.ids, self.training, len(self.rows), indices.repeats)
        extra_rows = [] if self._extra_rows is None else self._extra_rows(rng)
        collate = self.task.collate
        if self.as_bytes and isinstance(self.task, HasByteBatches):
            collate = self.task.collate_bytes
        batch = collate(self._reader.read([*indices.ids, *extra_rows]), rng, self.batching)
        num_samples = 0 if indices.is_filler else batch.num_samples
        batch = batch if self.complete is None else self.complete(batch)
        return replace(batch, num_samples=num_samples, piece=indices.piece)

    @cached_property
    def _reader(self) -> RowReader:
        return RowReader(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        # A worker that is not forked maps the file itself.
        return {name: value for name, value in vars(self).items() if name != "_reader"}


class TrainLoader:
    """The micro-batches of the training split, grouped by optimizer step.

    Args:
        batches: The training split.
        plan: The samples of each step.
        requested: The key `train.accumulate`: micro-batches of a step; `auto` starts with 1.
        options: How batches are loaded.
        ranks: The devices that share each micro-batch.
        tokens: The key `loader.tokens`: positions of a micro-batch; None divides a step by `accumulate`.
        fill: Every device needs a batch for each micro-batch, if only a filler (see `BatchPlan.micro_batches`).

    Attributes:
        requested: The key `train.accumulate`.
        accumulate: Micro-batches of a step. It may change between steps: later steps then have so many.
        tokens: The key `loader.tokens`.
    """

    def __init__(
        self,
        batches: Batches,
        plan: BatchPlan,
        requested: int | Literal["auto"],
        options: LoaderOptions,
        ranks: Ranks | None = None,
        *,
        tokens: int | None = None,
        fill: bool = False,
    ) -> None:
        self.plan = plan
        self.tokens = tokens
        self.batches = batches
        self.requested = requested
        self.accumulate = 1 if requested == "auto" else requested
        self._options = options
        self._ranks = ranks or Ranks()
        self._fill = fill

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Yield this device's micro-batches of each step from `start` up to `stop` (exclusive).

        One DataLoader iterator serves all epochs, so workers do not restart between epochs.
        """
        while start < stop:
            accumulate = self.accumulate
            micro_batches = lru_cache(maxsize=64)(self._micro_batches)  # asked twice: by the sampler and below
            indices = (each for step in range(start, stop) for each in micro_batches(step))
            stream = _watched(iter(_data_loader(self.batches, indices, self._options, persistent=False)), self._options)
            while start < stop and self.accumulate == accumulate:
                start += 1
                yield list(islice(stream, len(micro_batches(start - 1))))

    def load(self, step: int) -> list[Batch]:
        """Return this device's micro-batches of a step."""
        return [self.batches[indices] for indices in self._micro_batches(step)]

    def load_largest(self) -> list[Batch]:
        """Return the micro-batches of a step with the longest samples of the split, as far as samples have a length."""
        lengths = self.batches.task.lengths(self.batches.rows)
        size = min(self.plan.batch_size, self.plan.num_samples)
        longest = np.arange(size) if lengths is None else np.argsort(-lengths, kind="stable")[:size]
        micro_batches = split_batch(BatchIndices(0, tuple(longest.tolist())), self.accumulate)
        return [self.batches[replace(each, piece=piece)] for piece, each in enumerate(micro_batches)]

    def fewer_tokens(self) -> int | None:
        """Return half of `tokens`, in whole rows; None if a micro-batch has one row."""
        width = self.batches.task.info().max_length
        rows = 0 if self.tokens is None or width is None else self.tokens // width // 2
        return rows * width if rows and width is not None else None

    def _micro_batches(self, step: int) -> list[BatchIndices]:
        return self.plan.micro_batches(step, self.accumulate, self._ranks.rank, self._ranks.size, fill=self._fill)


class EvaluationBatches:
    """All rows of a split, `batch_size` per batch; can be iterated repeatedly until it is closed.

    The rows come in `order`, positions in the split; None is their own order.

    Workers survive from one evaluation to the next if `options.persistent_workers` is set. Several devices share the
    batches: each has consecutive ones, and none is read twice. With `fill`, devices with fewer batches get fillers, so
    that all have as many.
    """

    def __init__(
        self,
        batches: Batches,
        batch_size: int,
        options: LoaderOptions,
        ranks: Ranks | None = None,
        *,
        fill: bool = False,
        order: Sequence[int] | None = None,
    ) -> None:
        ranks = ranks or Ranks()
        every = range(len(batches.rows)) if order is None else order
        indices = [BatchIndices(0, every[start : start + batch_size]) for start in range(0, len(every), batch_size)]
        # Rounded up: the first device has a batch, however few there are.
        bounds = [-(-len(indices) * rank // ranks.size) for rank in range(ranks.size + 1)]
        own = indices[bounds[ranks.rank] : bounds[ranks.rank + 1]]
        if fill:
            fillers = -(-len(indices) // ranks.size) - len(own)
            own += [replace(indices[0], ids=indices[0].ids[:1], is_filler=True)] * fillers
        self._num_batches = len(own)
        self._batches = batches
        self._options = options
        self._loader: DataLoader[Batch] | None = _data_loader(
            batches,
            own,
            options,
            persistent=options.persistent_workers,
        )

    def __iter__(self) -> Iterator[Batch]:
        assert self._loader is not None, "closed"
        return track(_watched(iter(self._loader), self._options), "evaluating", self._num_batches)

    def halves(self, batch: Batch) -> list[Batch]:
        """Load the samples of one of the batches again, as two batches."""
        middle = len(batch.ids) // 2
        return [self._batches[BatchIndices(0, ids)] for ids in (batch.ids[:middle], batch.ids[middle:])]

    def close(self) -> None:
        """End the workers.

        Without this call the garbage collector may destroy the workers' queues before the workers themselves, and then
        waits for the workers.
        """
        self._loader = None


def _data_loader(
    batches: Batches, indices: Iterable[BatchIndices], options: LoaderOptions, *, persistent: bool
) -> DataLoader[Batch]:
    return DataLoader(
        batches,
        sampler=indices,
        batch_size=None,
        num_workers=options.workers,
        prefetch_factor=options.prefetch if options.workers else None,
        pin_memory=options.pin_memory,
        persistent_workers=persistent and options.workers > 0,
        collate_fn=_keep_batch,
        worker_init_fn=partial(_init_worker, os.getpid()),
        # Without its own generator, a DataLoader draws from torch's global generator and so changes training.
        generator=torch.Generator(),
    )


_START_SECONDS: Final = 60.0  # at least, for the first batch: until then the workers start and import libraries
_LOST_WHILE_SENDING: Final = (ConnectionError, EOFError)


def _watched(stream: Iterator[Batch], options: LoaderOptions) -> Iterator[Batch]:
    """Yield batches; kill the workers if the next one does not come in time.

    The loader's own timeout does not notice a stopped worker that has announced a batch: a tensor's memory is then
    requested from the worker, without a limit.

    Raises:
        RuntimeError: No batch came in time, or a worker died.
    """
    if not options.workers:
        yield from stream
        return
    workers: Sequence[multiprocessing.Process] = getattr(stream, "_workers", ())
    expired = threading.Event()

    def kill() -> None:
        expired.set()
        for worker in workers:
            worker.kill()

    seconds = max(options.timeout, _START_SECONDS)
    while True:
        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        if options.timeout:
            timer.start()
        try:
            try:
                batch = next(stream)
            except Exception as error:
                if expired.is_set() or isinstance(error, _LOST_WHILE_SENDING):
                    # torch raises an error when the system reports the death of a worker, wherever the program is by
                    # then. Here it does no harm; while the first error is handled, it would replace that.
                    for worker in workers:
                        worker.kill()
                        worker.join(5.0)  # seconds; one that waits for a lost disk cannot be killed
                raise
        except StopIteration:
            return
        except Exception as error:
            if expired.is_set():
                raise RuntimeError(f"DataLoader timed out after {seconds} seconds") from error
            if isinstance(error, _LOST_WHILE_SENDING):
                raise RuntimeError("DataLoader worker (pid unknown) was killed") from error
            raise
        finally:
            timer.cancel()
        yield batch
        seconds = options.timeout


def _keep_batch(batch: Any) -> Any:
    return batch


def _init_worker(parent: int, _: int) -> None:
    """Ignore signals in a worker: the main process handles them, and still needs its workers to finish the step.

    A worker ends with the main process, also if that is killed before the worker is ready: torch would then take the
    process that adopts the worker for the main process. With the start method `forkserver`, the parent of a worker is
    the server, which runs as long as a worker does.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if multiprocessing.get_start_method() == "forkserver":
        threading.Thread(target=_end_with_main_process, daemon=True).start()
    else:
        end_with_parent_thread(parent)


def _end_with_main_process() -> None:
    main = multiprocessing.parent_process()
    assert main is not None, "only workers wait for their main process"
    main.join()
    os.kill(os.getpid(), signal.SIGKILL)


@atexit.register
def _kill_workers() -> None:
    """Kill the workers at exit: they ignore SIGTERM, so the interpreter would wait for them, and they hold no state."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
