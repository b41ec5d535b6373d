"""Saving checkpoints on a background thread, while training continues."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.store import Store
from trainer.distributed.ranks import Ranks
from trainer.errors import CheckpointError, ReportedError


class Saver:
    """Saves snapshots on a background thread, one at a time: training waits only for a copy in memory.

    Args:
        store: Where the snapshots go.
        ranks: The processes that each save a shard, with a connection of their own for the background threads; None
            saves complete snapshots.
    """

    def __init__(self, store: Store, ranks: Ranks | None = None) -> None:
        self._store = store
        self._ranks = ranks
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[Path] | None = None
        self._copies: dict[str, dict[str, Tensor]] = {}

    def submit(self, snapshot: Snapshot, protect: Collection[int] = ()) -> None:
        """Start a save and return as soon as the tensors that may change are copied; the frozen ones are shared.

        Waits for the previous save if it is still running.

        Raises:
            CheckpointError: The previous save failed; this one was not started.
            ReportedError: The same, in the processes after the first one.
        """
        self._wait()
        # The memory of the previous copies is free again, so no save allocates (and page-locks) it anew.
        trained = {
            file: {name: tensor for name, tensor in named.items() if name not in snapshot.frozen.get(file, ())}
            for file, named in snapshot.tensors.items()
        }
        self._copies = _copy(trained, self._copies)
        tensors = {
            file: {name: self._copies[file].get(name, tensor) for name, tensor in named.items()}
            for file, named in snapshot.tensors.items()
        }
        copied = replace(snapshot, tensors=tensors, documents=dict(snapshot.documents))
        if self._ranks is None:
            self._saving = self._pool.submit(self._store.save, copied, tuple(protect))
        else:
            self._saving = self._pool.submit(self._store.save_shard, copied, self._ranks, tuple(protect))

    def when_saved(self, announce: Callable[[], None]) -> None:
        """Call a function on the background thread once the submitted checkpoint is durable; never if that fails."""
        assert self._saving is not None, "nothing was submitted"
        self._saving = self._pool.submit(_announce, self._saving, announce)

    def close(self) -> None:
        """Wait for the last save; nothing can be submitted afterwards.

        Raises:
            CheckpointError: The last save failed.
            ReportedError: The same, in the processes after the first one.
        """
        self._pool.shutdown(wait=True)
        self._copies = {}
        self._wait()

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            saving.result()
        except CheckpointError as error:
            if self._ranks is None or self._ranks.is_first:
                raise
            raise ReportedError(error.exit_code) from error


def _announce(saving: Future[Path], announce: Callable[[], None]) -> Path:
    path = saving.result()
    announce()
    return path


def _copy(
    tensors: Mapping[str, Mapping[str, Tensor]], memory: Mapping[str, Mapping[str, Tensor]]
) -> dict[str, dict[str, Tensor]]:
    """Copy tensors to the host, into `memory` where shape and dtype fit."""
    copies: dict[str, dict[str, Tensor]] = {}
    devices: set[torch.device] = set()
    for file, named in tensors.items():
        copies[file] = {}
        for name, tensor in named.items():
            copy = memory.get(file, {}).get(name)
            if copy is None or copy.shape != tensor.shape or copy.dtype != tensor.dtype:
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[file][name] = copy.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
            if tensor.is_cuda:
                devices.add(tensor.device)
    for device in devices:
        torch.cuda.current_stream(device).synchronize()
    return copies
