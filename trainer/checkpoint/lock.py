"""One process at a time writes into a run folder."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import CheckpointError, format_error

_held: set[int] = set()


def _close_inherited() -> None:
    # A forked worker that outlives its killed parent for a moment would go on holding the lock.
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Holds `<folder>/.lock`. The kernel lets go of it with the process, however that ends: no lock is ever stale.

    Raises:
        CheckpointError: Another process holds it, or the folder cannot be written.
    """
    file = _locked(folder)
    # Whoever held it before may have removed it with the folder of a run that never started.
    while not _is(file, folder / ".lock"):
        os.close(file)
        file = _locked(folder)
    _held.add(file)
    try:
        yield
    finally:
        if file in _held:
            _held.remove(file)
            os.close(file)


def _locked(folder: Path) -> int:
    """The lock's file, open and locked."""
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise CheckpointError(format_error(str(path), f"cannot be opened: {error.strerror}")) from error
    try:
        _lock(file, folder)
    except BaseException:
        os.close(file)
        raise
    return file


def _is(file: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(file, 256, 0).decode(errors="replace").strip() or "(unknown)"
        remedy = "Wait until it is done or stop it, or choose another run.name"
        raise CheckpointError(
            format_error(str(folder), f"the run folder is in use by process {holder}", remedy)
        ) from error
    except OSError as error:
        raise CheckpointError(format_error(str(folder), f"cannot be locked: {error.strerror}")) from error
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
