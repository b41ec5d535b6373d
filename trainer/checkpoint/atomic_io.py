"""The few file operations a checkpoint is made of. Whatever fails names its path and the system's reason."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from trainer.errors import CheckpointError, format_error

# A piece still lies in the processor's cache when, checksummed, it is handed to the system.
_PIECE_BYTES = 1 << 20


class Content(NamedTuple):
    """What a file held when it was written or read: its bytes' number and CRC32."""

    size: int
    crc32: int


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> Content:
    """Writes a new file through to the device, checksummed from the very bytes that are written.

    Raises:
        CheckpointError: Any operation on the file failed.
    """
    size = crc = 0
    with _naming(path, "written"):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for piece in _pieces(chunks):
                crc = zlib.crc32(piece, crc)
                size += len(piece)
                _write_whole(file, piece)
            os.fsync(file)
        finally:
            os.close(file)
    return Content(size, crc)


def checksum(path: Path) -> Content:
    """Reads a file piece by piece. Raises the `OSError` of the read as it is."""
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            crc = zlib.crc32(piece, crc)
            size += len(piece)
    return Content(size, crc)


Stamp = frozenset[tuple[str, int, int, int]]


def stamp(folder: Path) -> Stamp:
    """Changes when a file of the folder is written, replaced, added or removed; no file is read for it.

    Raises the `OSError` of the look as it is.
    """
    found = [(path.name, path.stat(follow_symlinks=False)) for path in folder.iterdir()]
    return frozenset((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def entries(folder: Path) -> frozenset[Path]:
    """What lies in a folder; nothing where the folder does not exist."""
    with _naming(folder, "read"), suppress(FileNotFoundError):
        return frozenset(folder.iterdir())
    return frozenset()


def create_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are missing."""
    with _naming(folder, "created"):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable, as fsync of a file makes its bytes."""
    with _naming(folder, "synchronized"):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def rename(source: Path, target: Path) -> None:
    """Renames a folder and makes the new name durable."""
    with _naming(source, f"renamed to {target.name}"):
        os.rename(source, target)
    sync_folder(target.parent)


def remove_folder(folder: Path) -> None:
    """Removes a folder and what is in it."""
    with _naming(folder, "removed"):
        _remove(folder)


@contextmanager
def _naming(path: Path, done: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "The earlier checkpoints are untouched: remove the cause, then resume the run"
        raise CheckpointError(format_error(str(path), f"cannot be {done}: {error.strerror}", remedy)) from error


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    for inside in path.iterdir():
        _remove(inside)
    path.rmdir()


def _pieces(chunks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), _PIECE_BYTES):
            yield view[start : start + _PIECE_BYTES]


def _write_whole(file: int, piece: memoryview) -> None:
    # The system may take less than it is given, on a device that is nearly full for one.
    while piece:
        piece = piece[os.write(file, piece) :]
