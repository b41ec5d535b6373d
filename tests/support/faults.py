"""File operations that fail on purpose, and the check that a failed save has harmed no earlier checkpoint."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from trainer.checkpoint.manifest import find_faults
from trainer.checkpoint.store import Store

WRITING = [(os, name) for name in ("open", "write", "fsync", "close", "rename", "mkdir", "unlink", "rmdir")]
"""The operations of a save that change the disk."""

SCORES = {10: 0.9, 20: 0.1, 30: 0.2}
"""The score of each earlier checkpoint, by step; lower is worse."""


class Fault:
    """The n-th of the named operations fails once, counted over all threads whose names begin alike.

    Args:
        patch: Replaces the operations.
        operations: Modules and names of functions.
        code: The error number of the failure.
        at: n, from 1.
        thread: The beginning of the names of the threads that count; "" counts all.
    """

    def __init__(
        self,
        patch: pytest.MonkeyPatch,
        operations: Iterable[tuple[ModuleType, str]],
        code: int,
        at: int,
        thread: str = "",
    ) -> None:
        self.reached = 0
        self._lock = threading.Lock()
        self._thread = thread
        for module, name in operations:
            patch.setattr(module, name, self._failing(name, getattr(module, name), code, at))

    def _failing(self, name: str, real: Callable[..., Any], code: int, at: int) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            if not threading.current_thread().name.startswith(self._thread):
                return real(*args, **kwargs)
            with self._lock:
                self.reached += 1
                fails = self.reached == at
            if not fails:
                return real(*args, **kwargs)
            if name == "close":  # closes all the same, as the system does
                real(*args, **kwargs)
            raise OSError(code, os.strerror(code))

        return operation


def assert_unharmed(folder: Path, make: Callable[..., Any], same: Callable[..., bool], new: int) -> Store:
    """Check that every listed checkpoint is intact, and that the best, the newest and one more are there."""
    store = Store(folder, keep=2)
    steps = store.list()
    assert {10, 30} <= set(steps)
    assert {20, new} & set(steps)
    for step in steps:
        assert find_faults(store.path(step)) == []
        loaded = store.load(f"step-{step}")
        assert same(loaded, make(step, SCORES.get(step))) or (step == new and same(loaded, make(new, 0.3)))
    assert store.load("best").step == 10
    return store
