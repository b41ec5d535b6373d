"""Durable file operations. A crash or a full disk leaves the old file or the new one, never half of one.

Every error names the path and the reason that the system gives. No other module writes files, except into a folder from
`replaced_folder` or a temporary folder.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import io
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from trainer.errors import CheckpointError, ConfigError, ErrorType, format_error
from trainer.files.storage_errors import naming_errors, storage_errors_named

_TEMPORARY: Final = re.compile(r"\.trainer-[0-9a-f]{16}\.tmp")
"""Names of files and folders that are not complete yet. The process that writes one holds a lock on it."""

_REPLACED: Final = ".trainer-replaced-"
"""Prefix of the name of a folder while another one takes its place."""
_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux."""

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


def create_folder(folder: Path, error_type: ErrorType | None = None) -> None:
    """Create a folder and its missing parents.

    Args:
        folder: The folder.
        error_type: Makes the error of a folder that cannot be created; None is the error of a checkpoint.

    Raises:
        TrainerError: The folder cannot be created.
    """
    with _naming_errors(folder, "created") if error_type is None else naming_errors(folder, error_type):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir(exist_ok=True)  # another process may have made it by now
    for path in missing:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as fsync of a file makes its bytes durable."""
    with _naming_errors(folder, "synchronized"):
        sync(folder)


def link_file(source: Path, target: Path) -> bool:
    """Give a file a second name, durable after `sync_folder`; return False if the file system cannot."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        return False
    return True


def has_contents(path: Path, chunks: Iterable[bytes | memoryview]) -> bool:
    """Return whether a file contains exactly these bytes; False if it cannot be read."""
    try:
        with path.open("rb") as file:
            return all(file.read(len(chunk)) == chunk for chunk in _split(chunks)) and not file.read(1)
    except OSError:
        return False


def rename(source: Path, target: Path) -> None:
    """Rename a folder and make the new name durable."""
    with _naming_errors(source, f"renamed to {target.name}"):
        os.rename(source, target)
    sync_folder(target.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder and its contents."""
    with _naming_errors(folder, "removed"):
        _remove(folder)


def discard(path: Path) -> None:
    """Remove a file, or a folder and its contents, as far as the disk allows."""
    with suppress(OSError):
        _remove(path)


@contextmanager
def replaced_file(path: Path, error_type: ErrorType = CheckpointError) -> Iterator[IO[bytes]]:
    """Yield a file that takes the place of `path` when the block ends: complete, durable, and with its permissions.

    If the block or a file operation fails, `path` is unchanged and nothing is left.

    Raises:
        TrainerError: A file operation failed; of the type `error_type`.
    """
    target = Path(os.path.realpath(path))
    with naming_errors(path, error_type):
        remove_leftovers(target.parent)
        temporary, descriptor = _create_temporary(target.parent, is_folder=False)
    try:
        with _WrittenFile(path, error_type, descriptor) as raw:
            buffered = io.BufferedWriter(raw)
            yield buffered
            buffered.flush()
            with naming_errors(path, error_type):
                if target.exists():
                    os.fchmod(descriptor, target.stat().st_mode & 0o777)
                os.fsync(descriptor)
                os.rename(temporary, target)
        with naming_errors(path, error_type):
            sync(target.parent)
    finally:
        discard(temporary)


def refuse_to_replace(key: str, path: Path, *, force: bool, is_own: Callable[[Path], bool] | None = None) -> None:
    """Check that writing a file replaces nothing of the user's.

    Args:
        key: The key that names the file.
        path: The file, which need not exist.
        force: The user allows it to be replaced.
        is_own: Returns whether a file is, byte for byte, one that this tool has written; None if that does not show.

    Raises:
        ConfigError: It is a file from elsewhere, or no regular file.
    """
    if not path.exists():
        return
    if not path.is_file():
        raise ConfigError(format_error(key, "is not a regular file", "Name another file", value=str(path)))
    if force:
        return
    with naming_errors(path, ConfigError):
        if is_own is not None and is_own(path):
            return
    problem = "exists already" if is_own is None else "was not written by trainer, or has been changed since"
    remedy = "Set force=true to replace it, or name another file"
    raise ConfigError(format_error(key, problem, remedy, value=str(path)))


def set_aside(path: Path, is_own: Callable[[Path], bool]) -> Path | None:
    """Give a file that this tool has not written, or that was changed since, another name if it exists.

    Args:
        path: The file, whose name is needed for another file.
        is_own: See `refuse_to_replace`.

    Returns:
        The new name; None if the file may be replaced.
    """
    with naming_errors(path):
        if not path.exists() or (path.is_file() and is_own(path)):
            return None
        free = next(name for number in count(1) if not os.path.lexists(name := Path(f"{path}.kept-{number}")))
        os.rename(path, free)
    return free


def write_text(path: Path, text: str, error_type: ErrorType = CheckpointError) -> None:
    """Replace a file by a text in UTF-8, see `replaced_file`."""
    with replaced_file(path, error_type) as file:
        file.write(text.encode())


@contextmanager
def replaced_folder(folder: Path, error_type: ErrorType = CheckpointError, *, is_cache: bool = False) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `folder` when the block ends: complete and durable.

    If the block or a file operation fails, `folder` is unchanged and nothing is left.

    Args:
        folder: The folder; its missing parents are created.
        error_type: The type of an error of a file operation.
        is_cache: Only the user may read the folder, and it stays as it is if another process has made it during the
            block.

    Raises:
        TrainerError: A file operation failed; of the type `error_type`.
    """
    target = Path(os.path.realpath(folder))
    with naming_errors(folder, error_type):
        target.parent.mkdir(0o700 if is_cache else 0o777, parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        stage, lock = _create_temporary(target.parent, is_folder=True)
    try:
        with storage_errors_named(folder, stage, error_type):
            yield stage
        with naming_errors(folder, error_type):
            finish_files(stage, is_private=is_cache)
            _put_in_place(stage, target, keeps_existing=is_cache)
            sync(target.parent)
    finally:
        os.close(lock)
        discard(stage)


def _put_in_place(stage: Path, target: Path, *, keeps_existing: bool) -> None:
    """Give a folder the name `target`; a folder of that name, unless it is kept, gets the name `stage`."""
    if keeps_existing or not target.exists():
        try:
            os.rename(stage, target)
        except OSError:
            if not (keeps_existing and target.is_dir()):
                raise
        return
    try:
        _exchange(stage, target)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EXDEV):
            raise
        _exchange_in_two_steps(stage, target)


def _exchange(first: Path, second: Path) -> None:
    """Exchange the names of two folders in one step: renameat2(2) of Linux.

    Raises:
        OSError: The system or the file system cannot, or the disk failed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    code = errno.ENOSYS
    if rename is not None:
        if not rename(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE):
            return
        code = ctypes.get_errno()
    raise OSError(code, os.strerror(code), str(second))


def _exchange_in_two_steps(stage: Path, target: Path) -> None:
    """Exchange two folders; if the process is killed in between, `remove_leftovers` gives `target` its name back."""
    old = target.with_name(_REPLACED + target.name)
    descriptor = os.open(target, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.rename(target, old)
        try:
            os.rename(stage, target)
        except BaseException:  # a signal, too
            os.rename(old, target)
            raise
        os.rename(old, stage)
    finally:
        os.close(descriptor)


def finish_files(folder: Path, *, is_private: bool = False) -> None:
    """Make all files of a folder durable.

    They get the permissions of any new file, because some libraries make private ones; with `is_private`, only the user
    may read them. A link to an earlier file keeps its permissions.

    Raises:
        OSError: A file operation failed.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in (folder, *folder.rglob("*")):
        if path.is_file():
            if is_private or path.stat().st_nlink == 1:
                path.chmod(0o600 if is_private else 0o666 & ~umask)
        elif is_private:
            path.chmod(0o700)
        sync(path)


@contextmanager
def library_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file for a library that aborts the process if a write fails, as torch does on a full disk.

    The library sees every write succeed; the first one that failed is raised at the end of the block.

    Raises:
        OSError: A write failed.
    """
    with _ErrorKeepingFile(path, "wb") as file:
        yield file
    if file.failure is not None:
        raise OSError(file.failure.errno, file.failure.strerror, str(path)) from file.failure


class _ErrorKeepingFile(io.FileIO):
    failure: OSError | None = None

    def fileno(self) -> int:
        raise io.UnsupportedOperation("torch would write past this object")

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while view and self.failure is None:
                view = view[super().write(view) :]
        except OSError as error:
            self.failure = error
        return size


class _WrittenFile(io.FileIO):
    """A file whose failing writes name the file whose place it takes."""

    def __init__(self, path: Path, error_type: ErrorType, descriptor: int) -> None:
        super().__init__(descriptor, "r+b")
        self._errors = path, error_type

    def write(self, data: Any) -> int:
        with naming_errors(*self._errors):
            return os.write(self.fileno(), data)


def append(file: int, path: Path, line: bytes) -> None:
    """Append a line to an open file whole, or not at all.

    Raises:
        CheckpointError: The line cannot be written.
    """
    size = os.fstat(file).st_size
    try:
        with naming_errors(path):
            _write_all(file, memoryview(line))
    except CheckpointError:
        with suppress(OSError):
            os.ftruncate(file, size)
        raise


def remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed have left in a folder: unfinished files and folders without a lock.

    A folder that was about to be replaced gets its name back.
    """
    if not folder.is_dir():
        return
    names = [entry.name for entry in os.scandir(folder)]
    replaced = {name for name in names if name.removeprefix(_REPLACED) not in ("", name)}
    for path in [folder / name for name in names if name in replaced or _TEMPORARY.fullmatch(name)]:
        with suppress(OSError):  # removed by another process, or locked by the one that writes it
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would wait for a writer
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                target = path.with_name(path.name.removeprefix(_REPLACED))
                if target == path or target.exists():
                    _remove(path)
                else:
                    os.rename(path, target)
            finally:
                os.close(descriptor)


def _create_temporary(folder: Path, *, is_folder: bool) -> tuple[Path, int]:
    """Return a new file or folder in `folder`, and its open descriptor, which holds a lock."""
    while True:
        path = folder / f".trainer-{os.urandom(8).hex()}.tmp"
        if is_folder:
            path.mkdir()
        try:
            descriptor = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:
            if is_folder and folder.is_dir():
                continue  # another process has taken it for a leftover
            raise
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return path, descriptor
        os.close(descriptor)  # as above


@contextmanager
def _naming_errors(path: Path, participle: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        remedy = "Earlier checkpoints are unchanged. Fix the cause, then resume the run"
        raise CheckpointError(format_error(str(path), f"cannot be {participle}: {error.strerror}", remedy)) from error


def sync(path: Path) -> None:
    """Make the bytes of a file, or the names in a folder, durable.

    Raises:
        OSError: The disk failed.
    """
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


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
