"""The processes that train one model together: their ranks, and what they exchange.

The processes of a run differ only in the samples that they read. Whatever decides how the run goes on (the loss, the
gradient, scores, a request to stop) is exchanged first, so that all of them decide alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import (  # type: ignore[attr-defined]  # they are imported only if distributed is available
    PrefixStore,
    Store,
    TCPStore,
    distributed_c10d,
    rendezvous,
)
from torch.nn.modules.batchnorm import _NormBase

from trainer.distributed.environment import LISTEN_FD, note_joined, report_once_with
from trainer.errors import LostRankError

_Value = TypeVar("_Value")

_jobs = count()

_REPORT_SECONDS = 5.0
"""Time that other processes have to find the same error."""

_FAILED = "failed"
"""Key of the number of processes that have failed."""

BUCKET_BYTES = 2**26
"""Gradients are exchanged in pieces of about this size: few calls, and little memory beyond the gradients."""


class Ranks:
    """A group of processes, each with its device; by default this process alone, which exchanges nothing.

    Every process of the group must make the same calls in the same order.

    Args:
        rank: The number of this process, from 0.
        size: The number of processes.
        group: The connection of the processes; None is the one that was joined first.

    Raises (every method):
        LostRankError: Another process has ended.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: dist.ProcessGroup | None = None) -> None:
        assert 0 <= rank < size
        self.rank = rank
        self.size = size
        self._group = group
        self._flag: Callable[[], bool] = lambda: False
        self._is_flagged = False

    def close(self) -> None:
        """Leave the group; no other method may be called afterwards."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def for_thread(self) -> Ranks:
        """Return the same processes with a connection of their own, so that another thread can use it at any time.

        All processes must call this together.
        """
        if self.size == 1:
            return self
        with _lost_rank():
            return Ranks(self.rank, self.size, dist.new_group(backend="gloo"))

    @property
    def is_first(self) -> bool:
        """True for the process that writes the run's files and the screen."""
        return self.rank == 0

    def sum(self, *values: float) -> list[float]:
        """Return the sum of each value over all processes, in float64; waits for no device."""
        if self.size == 1:
            return [float(value) for value in values]
        total = torch.tensor(values, dtype=torch.float64)
        with _lost_rank():
            dist.all_reduce(total, group=self._group)
        return [float(value) for value in total.tolist()]

    def start_sum(self, value: float) -> Callable[[], float]:
        """Start to sum a value over all processes, in float64, and return a function that waits for the sum."""
        if self.size == 1:
            return lambda: float(value)
        total = torch.tensor(value, dtype=torch.float64)
        with _lost_rank():
            work = dist.all_reduce(total, group=self._group, async_op=True)

        def wait() -> float:
            with _lost_rank():
                work.wait()
            return total.item()

        return wait

    def share_flag(self, flag: Callable[[], bool]) -> Callable[[], bool]:
        """Return a function that returns True, in all processes after the same step, once `flag` of any of them has.

        `flag` is called when gradients are summed, so that it needs no exchange of its own. Only the last call counts.
        """
        if self.size == 1:
            return flag
        self._flag, self._is_flagged = flag, False
        return lambda: self._is_flagged

    def any(self, flag: bool) -> bool:
        """Return True if the flag of any process is True."""
        return self.sum(float(flag))[0] > 0

    def broadcast(self, value: _Value) -> _Value:
        """Return the first process's value; the values of the others are ignored."""
        if self.size == 1:
            return value
        values = [value]
        with _lost_rank():
            dist.broadcast_object_list(values, src=0, group=self._group, device=torch.device("cpu"))
        return values[0]

    def gather(self, value: _Value) -> list[_Value]:
        """Return the value of each process, by rank."""
        if self.size == 1:
            return [value]
        values: list[_Value] = [value] * self.size
        with _lost_rank():
            dist.all_gather_object(values, value, group=self._group)
        return values

    def broadcast_weights(self, modules: Iterable[nn.Module]) -> None:
        """Replace parameters and buffers by the first process's: another processor may initialize otherwise."""
        tensors = [tensor.detach() for module in modules for tensor in (*module.parameters(), *module.buffers())]
        for tensor in tensors if self.size > 1 else ():
            with _lost_rank():
                dist.broadcast(tensor, src=0, group=self._group)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[Tensor], loss: Tensor) -> None:
        """Replace the gradients, and the loss of shape (), by their sums over all processes.

        A gradient is None afterwards only if it is None in every process: a process without samples has none.
        """
        if self.size == 1:
            return
        parameters = list(parameters)
        flags = [*(parameter.grad is not None for parameter in parameters), self._flag()]
        of_any = torch.tensor(flags, dtype=torch.uint8)
        with _lost_rank():
            dist.all_reduce(of_any, op=dist.ReduceOp.MAX, group=self._group)
        *present, is_flagged = of_any.tolist()
        self._is_flagged |= bool(is_flagged)
        used = [parameter for parameter, some in zip(parameters, present, strict=True) if some]
        for parameter in used:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in used if parameter.grad is not None]
        for tensors in _buckets([loss, *gradients]):
            flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
            with _lost_rank():
                dist.all_reduce(flat, group=self._group)
            for tensor, summed in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
                tensor.copy_(summed.view_as(tensor))

    def gather_rows(self, rows: Tensor) -> Tensor:
        """Return the rows (N, ...) of all processes by rank; only this process's own rows keep their gradient.

        So if every process computes the same value of all rows, the sum of their gradients is the value's gradient.
        """
        if self.size == 1:
            return rows
        sizes = self._gather_sizes(len(rows))
        shape = rows.shape[1:]
        # Gloo and NCCL gather tensors of one shape.
        padded = torch.zeros((max(sizes), *shape), dtype=rows.dtype, device=rows.device)
        padded[: len(rows)] = rows.detach()
        gathered = [torch.empty_like(padded) for _ in sizes]
        with _lost_rank():
            dist.all_gather(gathered, padded, group=self._group)
        parts = [part[:size] for part, size in zip(gathered, sizes, strict=True)]
        parts[self.rank] = rows
        return torch.cat(parts)

    @torch.no_grad()
    def average_batch_norm(self, module: nn.Module, num_samples: int) -> None:
        """Average the running statistics of batch normalization over all processes.

        Args:
            module: The model.
            num_samples: Samples of this process in the step: the weight of its statistics. Without samples it has none.
        """
        if self.size == 1:
            return
        layers = [
            layer
            for layer in module.modules()
            if isinstance(layer, _NormBase) and layer.training and layer.running_mean is not None
        ]
        if not layers:
            return
        statistics = [each for layer in layers for each in (layer.running_mean, layer.running_var) if each is not None]
        # The last number is the sum of the weights.
        flat = torch.cat([*(each.double() for each in statistics), statistics[0].new_ones(1).double()]) * num_samples
        with _lost_rank():
            dist.all_reduce(flat, group=self._group)
        averages = torch.split(flat[:-1] / flat[-1], [each.numel() for each in statistics])
        for statistic, average in zip(statistics, averages, strict=True):
            statistic.copy_(average)
        counts = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        if counts:
            most = torch.stack(counts)
            with _lost_rank():
                dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self._group)
            for count_of_layer, value in zip(counts, most, strict=True):
                count_of_layer.copy_(value)

    def _gather_sizes(self, size: int) -> list[int]:
        sizes = torch.zeros(self.size, dtype=torch.int64)
        sizes[self.rank] = size
        with _lost_rank():
            dist.all_reduce(sizes, group=self._group)
        return sizes.tolist()


def connect(timeout: float) -> Store | None:
    """Connect to the other processes that the environment names (RANK, WORLD_SIZE, as torchrun sets them), if any.

    Afterwards an error that several processes have is reported by one of them.

    Args:
        timeout: Seconds to wait for another process before the run fails.
    """
    rank, size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        return None
    limit = timedelta(seconds=timeout)
    store: Store
    with _lost_rank():
        if (socket := os.environ.get(LISTEN_FD)) is None:
            store, _, _ = next(rendezvous("env://", rank, size, timeout=limit))
        else:
            store = TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                size,
                is_master=rank == 0,
                timeout=limit,
                master_listen_fd=int(socket) if rank == 0 else None,
            )
    # The processes of a sweep connect once for each job, perhaps to the same store.
    own = PrefixStore(f"job-{next(_jobs)}", store)
    is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"

    def is_first_report(text: str | None) -> bool:
        is_first = text is not None and own.add(text, 1) == 1
        own.add(_FAILED, 1)
        deadline = time.monotonic() + _REPORT_SECONDS
        # The store ends with its host, and then nobody knows any more what has been reported.
        while is_host and own.add(_FAILED, 0) < size and time.monotonic() < deadline:
            time.sleep(0.05)
        return is_first

    report_once_with(is_first_report)
    return own


def join_ranks(backend: str, timeout: float, store: Store | None) -> Ranks:
    """Form the group of the processes that are connected; the other methods exchange values in it.

    Args:
        backend: `gloo` for CPUs, `cpu:gloo,cuda:nccl` for GPUs.
        timeout: Seconds to wait for another process before the run fails.
        store: The connection to the others; None is this process alone.
    """
    if store is None:
        return Ranks()
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    limit = timedelta(seconds=timeout)
    # For all groups: torch makes the groups of shards inside, and has no parameter for it.
    distributed_c10d.default_pg_timeout = limit
    distributed_c10d.default_pg_nccl_timeout = limit  # type: ignore[attr-defined]
    with _lost_rank():
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    note_joined()
    return Ranks(rank, size)


@contextmanager
def lost_rank_reported(ranks: Ranks) -> Iterator[None]:
    """Turn the error of an exchange that torch makes itself, as for shards, into `LostRankError`.

    Raises:
        LostRankError: Another process has ended.
    """
    try:
        yield
    except RuntimeError as error:
        # Gloo's errors have no type of their own.
        if ranks.size == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        with _lost_rank():
            raise


@contextmanager
def _lost_rank() -> Iterator[None]:
    """Turn the error of an exchange into the one that says why: another process has ended."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise LostRankError(f"the connection to another process of the run was lost ({reason})") from error


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of one dtype and device into lists of about `BUCKET_BYTES`; the order is always the same."""
    buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        key = (tensor.dtype, tensor.device)
        bucket = buckets.setdefault(key, [])
        bucket.append(tensor)
        if sum(each.numel() * each.element_size() for each in bucket) >= BUCKET_BYTES:
            yield buckets.pop(key)
    yield from buckets.values()
