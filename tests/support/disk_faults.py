"""A disk that fails at a chosen operation: every creation, write, fsync, rename and removal in a folder is counted.

Operations are seen by Python's audit events and at `os.write` and `os.fsync`, so no writer of the program is missed.
Libraries that write in native code are reached by the kernel's limit of file sizes, see `file_size_limit`.
"""

from __future__ import annotations

import errno
import os
import resource
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

_REMOVALS: Final = ("os.remove", "os.rmdir")
_CHANGES: Final = ("os.mkdir", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", *_REMOVALS)
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_current: DiskFault | None = None


class DiskFault:
    """Fails the n-th operation below a folder.

    Args:
        folder: The folder.
        number: The error number; None raises a MemoryError.
        at: n, from 1; 0 only counts.
        lasts: All later operations fail too, except removals, as on a disk that stays full.

    Attributes:
        operations: Name and path of each operation.
    """

    def __init__(self, folder: Path, number: int | None = errno.ENOSPC, at: int = 0, *, lasts: bool = False) -> None:
        self._folder = os.path.realpath(folder)
        self._number = number
        self._at = at
        self._lasts = lasts
        self._lock = threading.Lock()
        self.operations: list[tuple[str, str]] = []

    def record(self, name: str, path: str) -> None:
        """Count an operation; raise the error if it is one that fails."""
        if not os.path.realpath(path).startswith(self._folder):
            return
        with self._lock:
            self.operations.append((name, path))
            reached = len(self.operations)
        if self._at and (reached == self._at or (self._lasts and reached > self._at and name not in _REMOVALS)):
            if self._number is None:
                raise MemoryError
            raise OSError(self._number, os.strerror(self._number), path)


@contextmanager
def failing_disk(fault: DiskFault) -> Iterator[None]:
    """Apply a fault in the block."""
    global _current
    _install()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "pwrite", "ftruncate", "fsync"):
            patch.setattr(os, name, _checked(name, getattr(os, name)))
        _current = fault
        try:
            yield
        finally:
            _current = None


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Let the kernel refuse (EFBIG) every write beyond a size in the block, in native code too."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _checked(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
    def operation(file: int, *arguments: Any) -> Any:
        if _current is not None:
            _current.record(name, os.readlink(f"/proc/self/fd/{file}"))
        return real(file, *arguments)

    return operation


_installed: list[bool] = []


def _install() -> None:
    if not _installed:  # an audit hook cannot be removed
        sys.addaudithook(_audit)
        _installed.append(True)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _current is None:
        return
    if event == "open":
        path, _, flags = arguments
        if isinstance(path, str | bytes) and flags & _WRITING:
            _current.record(event, os.fsdecode(path))
    elif event in _CHANGES and isinstance(arguments[0], str | os.PathLike):
        path = os.fspath(arguments[0])
        # The system refuses these anyway: they change nothing.
        if os.path.lexists(path) == (event not in ("os.mkdir", "os.symlink")):
            _current.record(event, path)
