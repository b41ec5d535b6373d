"""Durable file operations for checkpoints. Every error names the path and the reason that the system gives."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from trainer.errors import CheckpointError, format_error

# Small enough that a chunk is still in the processor's cache when, after its checksum, it is written.
_CHUNK_BYTES = 1 << 20


class FileDigest(NamedTuple):
    """Size in bytes and CRC32 of a file's contents."""

    size: int
    crc32: int


def write_file(path: Path, chunks: Iterable[bytes | memoryview]) -> FileDigest:
    """Write a new file and fsync it; the checksum is computed from the bytes that are written.

    Raises:
        CheckpointError: The file exists, or an operation on it failed.
    """
    size = crc = 0
    with _naming_errors(path, "written"):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            for chunk in _split(chunks):
                crc = zlib.crc32(chunk, crc)
                size += len(chunk)
                _write_all(file, chunk)
            os.fsync(file)
        finally:
            os.close(file)
    return FileDigest(size, crc)


def digest_file(path: Path) -> FileDigest:
    """Return size and checksum of a file, which is read chunk by chunk.

    Raises:
        OSError: The file cannot be read.
    """
    size = crc = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            crc = zlib.crc32(chunk, crc)
            size += len(chunk)
    return FileDigest(size, crc)


FolderStamp = frozenset[tuple[str, int, int, int]]


def stamp_folder(folder: Path) -> FolderStamp:
    """Return a value that changes when a file of the folder is written, replaced, added or removed; reads no file.

    Raises:
        OSError: The folder cannot be listed.
    """
    stats = [(path.name, path.stat(follow_symlinks=False)) for path in folder.iterdir()]
    return frozenset((name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def list_entries(folder: Path) -> frozenset[Path]:
    """Return the paths in a folder; empty if the folder does not exist."""
    with _naming_errors(folder, "read"), suppress(FileNotFoundError):
        return frozenset(folder.iterdir())
    return frozenset()


def create_folder(folder: Path) -> None:
    """Create a folder and its missing parents."""
    with _naming_errors(folder, "created"):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as fsync of a file makes its bytes durable."""
    with _naming_errors(folder, "synchronized"):
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def rename(source: Path, target: Path) -> None:
    """Rename a folder and make the new name durable."""
    with _naming_errors(source, f"renamed to {target.name}"):
        os.rename(source, target)
    sync_folder(target.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder and its contents."""
    with _naming_errors(folder, "removed"):
        _remove(folder)


@contextmanager
def _naming_errors(path: Path, participle: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "Earlier checkpoints are unchanged. Fix the cause, then resume the run"
        raise CheckpointError(format_error(str(path), f"cannot be {participle}: {error.strerror}", remedy)) from error


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    for entry in path.iterdir():
        _remove(entry)
    path.rmdir()


def _split(chunks: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]


def _write_all(file: int, chunk: memoryview) -> None:
    # The system may write less than it is given, for example on a device that is nearly full.
    while chunk:
        chunk = chunk[os.write(file, chunk) :]
