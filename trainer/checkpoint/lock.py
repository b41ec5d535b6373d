"""The lock of a run folder: one process at a time writes into it."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from trainer.errors import CheckpointError, format_error
from trainer.files.atomic_io import discard
from trainer.files.storage_errors import naming_errors
from trainer.layout import LOCK

if TYPE_CHECKING:
    from trainer.distributed.ranks import Ranks

_TOKEN = ".shared-"
_PATIENCE_SECONDS = 90.0
"""NFS may remember for a minute that a file does not exist."""

_held: set[int] = set()


def _close_inherited() -> None:
    # A forked worker that outlives its killed parent for a moment would keep the lock.
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_inherited)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold `<folder>/.lock`. The kernel releases it when the process ends, however it ends, so no lock is ever stale.

    Raises:
        CheckpointError: Another process holds the lock, or the folder cannot be written.
    """
    file = _open_locked(folder)
    # A previous holder may have removed the file together with the folder of a run that never started.
    while not _is_same_file(file, folder / LOCK):
        os.close(file)
        file = _open_locked(folder)
    _held.add(file)
    try:
        yield
    finally:
        if file in _held:
            _held.remove(file)
            os.close(file)


def require_shared(folder: Path, ranks: Ranks) -> None:
    """Check that all processes of a run see the run folder of the first one, which holds its lock.

    Raises:
        CheckpointError: Some do not.
    """
    if ranks.size == 1:
        return
    host = socket.gethostname()
    token = folder / f"{_TOKEN}{uuid4().hex}"
    if ranks.is_first:
        with naming_errors(token):
            token.touch()
    try:
        token, first_host = ranks.broadcast((token, host))
        seen = _appears(token, patience=0.0 if host == first_host else _PATIENCE_SECONDS)
        blind = [place for place in ranks.gather(None if seen else f"rank {ranks.rank} on {host}") if place]
    finally:
        if ranks.is_first:
            discard(token)
    if blind:
        problem = f"is not the same folder for all processes of the run; {', '.join(blind)} cannot see it"
        remedy = "Start all processes in one folder, or set run.dir to a folder that all machines share"
        raise CheckpointError(format_error("run.dir", problem, remedy, value=str(folder)))


def _appears(path: Path, patience: float) -> bool:
    """Return whether a file exists, or appears in time."""
    deadline = time.monotonic() + patience
    while True:
        # Reading the folder makes a network file system look again.
        if path.parent.is_dir() and path.name in os.listdir(path.parent):
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.5)


def _open_locked(folder: Path) -> int:
    """Open and lock the lock file."""
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        remedy = "Allow writing there, or copy the run to another folder"
        raise CheckpointError(format_error(str(path), f"cannot be opened: {error.strerror}", remedy)) from error
    try:
        _lock(file, folder)
    except BaseException:
        os.close(file)
        raise
    return file


def _is_same_file(file: int, path: Path) -> bool:
    """Return whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _lock(file: int, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(file, 256, 0).decode(errors="replace").strip() or "(unknown)"
        problem = f"the run folder is in use by process {holder}"
        remedy = "Wait until that process ends, stop it, or choose another run.name"
        raise CheckpointError(format_error(str(folder), problem, remedy)) from error
    except OSError as error:
        raise CheckpointError(format_error(str(folder), f"cannot be locked: {error.strerror}")) from error
    with suppress(OSError):  # the lock holds even if a full disk cannot store who has it
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
