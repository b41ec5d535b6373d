"""Saving beside the training: the caller waits for a copy in memory, not for the device that stores it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.store import Store

_Tensors = dict[str, dict[str, Tensor]]


class Saver:
    """Writes snapshots into a store on a thread of its own, one at a time.

    Args:
        store: Where the snapshots go.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[Path] | None = None
        self._copies: _Tensors = {}

    def submit(self, snapshot: Snapshot, protect: Collection[int] = ()) -> None:
        """Starts a save and returns as soon as the tensors are copied: the caller may change them at once.

        Waits for the save before, if that is still under way.

        Raises:
            CheckpointError: The save before failed; this one was not started.
        """
        self._wait()
        # The memory of the last copies is free again: nothing is allocated (and page-locked) anew at every save.
        self._copies = _copy(snapshot.tensors, self._copies)
        copied = Snapshot(snapshot.step, self._copies, dict(snapshot.documents))
        self._saving = self._pool.submit(self._store.save, copied, tuple(protect))

    def close(self) -> None:
        """Waits for the last save; nothing can be submitted afterwards.

        Raises:
            CheckpointError: The last save failed.
        """
        self._pool.shutdown(wait=True)
        self._wait()

    def _wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()


def _copy(tensors: Mapping[str, Mapping[str, Tensor]], memory: _Tensors) -> _Tensors:
    copies: _Tensors = {}
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
