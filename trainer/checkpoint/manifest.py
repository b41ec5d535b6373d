"""MANIFEST.json of a checkpoint: size and checksum of every file, and the check of a folder against it."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Final

from trainer.checkpoint.shards import FROZEN_FILE, SUFFIX, is_shard_file
from trainer.documents import CHECKPOINT, SHAPES, check_checkpoint_document
from trainer.errors import CheckpointError, format_error
from trainer.files.atomic_io import FileDigest, digest_file
from trainer.layout import CHECKPOINT_MANIFEST, Document
from trainer.shapes import LARGEST_DOCUMENT, DocumentError, check_shape, parse_json, read_bytes, seal

FORMAT: Final = 3
"""The newest format, of checkpoints with frozen weights in a file of their own. Format 2 contains shards; a checkpoint
with neither is written in format 1, as ever."""

STEP_FOLDER: Final = re.compile(r"step-(\d{8,})")


class DamagedError(Exception):
    """A checkpoint differs from what was written. The message starts with a file name; the caller adds the folder."""


class UnreadableError(DamagedError):
    """The system could not read a file, so it is unknown if the checkpoint is intact."""


@dataclass(frozen=True)
class Manifest:
    """The contents of MANIFEST.json.

    Attributes:
        step: Optimizer steps done when the checkpoint was taken.
        ordinal: Rises with every save. The newest checkpoint is the one saved last; it does not have the highest step
            if the run was resumed from an earlier step.
        files: Name -> size and CRC32, for every other file of the folder.
    """

    step: int
    ordinal: int
    files: Mapping[str, FileDigest]

    def render(self) -> bytes:
        """Return the canonical bytes, the only ones that a reader accepts; `checksum` covers all other fields."""
        files = {name: {"size": file.size, "crc32": f"{file.crc32:08x}"} for name, file in self.files.items()}
        number = FORMAT if FROZEN_FILE in self.files else 2 if any(map(is_shard_file, self.files)) else 1
        return _render({"format": number, "step": self.step, "ordinal": self.ordinal, "files": files})


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a checkpoint folder.

    Raises:
        DamagedError: It is missing or differs from what was written.
        CheckpointError: A newer version of trainer wrote its format.
    """
    data = _read(folder, CHECKPOINT_MANIFEST)
    try:
        fields = parse_json(data, {str: object}, finite=True)
    except DocumentError as error:
        raise DamagedError(f"{CHECKPOINT_MANIFEST} is not the JSON that was written: {error}") from error
    if data != _render(fields):
        raise DamagedError(f"{CHECKPOINT_MANIFEST} does not match its own checksum")
    # Every later format keeps the seal, so a flipped bit is never taken for a newer version.
    if isinstance(fields.get("format"), int) and fields["format"] > FORMAT:
        problem = f"has format {fields['format']}, but this version of trainer reads formats up to {FORMAT}"
        remedy = "Upgrade trainer to use this checkpoint"
        raise CheckpointError(format_error(str(folder / CHECKPOINT_MANIFEST), problem, remedy))
    try:
        check_shape(fields, CHECKPOINT)
        files = {name: FileDigest(file["size"], int(file["crc32"], 16)) for name, file in fields["files"].items()}
    except ValueError as error:
        raise DamagedError(f"{CHECKPOINT_MANIFEST} is not what was written: {error}") from error
    match = STEP_FOLDER.fullmatch(folder.name)
    if match and int(match[1]) != fields["step"]:
        raise DamagedError(f"{CHECKPOINT_MANIFEST} belongs to step {fields['step']}, not to this folder")
    return Manifest(fields["step"], fields["ordinal"], files)


def find_faults(folder: Path) -> list[str]:
    """Return every fault of a checkpoint folder, each starting with a file name; empty if it is intact.

    Raises:
        CheckpointError: A newer version of trainer wrote its format.
    """
    faults = []
    try:
        for fault in _iterate_faults(folder):
            faults.append(fault)  # noqa: PERF402  faults before an exception count too
    except DamagedError as last:
        faults.append(str(last))
    return faults


def require_intact(folder: Path) -> Path:
    """Return the folder itself if it is an intact checkpoint.

    Raises:
        DamagedError: The first fault of `find_faults`.
    """
    for fault in _iterate_faults(folder):
        raise DamagedError(fault)
    return folder


def read_files(folder: Path, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Yield name and verified bytes of every file except the manifest, one file in memory at a time.

    Raises:
        DamagedError: A file is missing, altered or not in the manifest.
    """
    for fault in _find_misplaced(folder, manifest):
        raise DamagedError(fault)
    for name, written in manifest.files.items():
        yield name, _read_verified(folder, name, written)


def read_document(folder: Path, name: str, manifest: Manifest | None = None) -> str | None:
    """Return one verified text file of a checkpoint (`config.yaml`); None if the checkpoint has no such file.

    Args:
        folder: The checkpoint.
        name: The name of the file.
        manifest: The manifest of the checkpoint, if it has been read.

    Raises:
        DamagedError: The manifest or that file is damaged.
    """
    written = (manifest or read_manifest(folder)).files.get(name)
    return None if written is None else decode_document(name, _read_verified(folder, name, written))


def decode_document(name: str, data: bytes) -> str:
    """Return the text of a document of a checkpoint.

    Raises:
        DamagedError: It is intact, but not what a checkpoint contains.
    """
    try:
        return check_checkpoint_document(name, data)
    except DocumentError as error:
        raise DamagedError(f"{name} is not what was written: {error}") from error


def _render(fields: Document) -> bytes:
    return (json.dumps(seal(fields), indent=1, sort_keys=True) + "\n").encode()


def _iterate_faults(folder: Path) -> Iterator[str]:
    manifest = read_manifest(folder)
    yield from _find_misplaced(folder, manifest)
    for name, written in manifest.files.items():
        with suppress(FileNotFoundError), _reading(name):
            file = folder / name
            if not file.is_file():
                continue  # reported above; reading a pipe would wait for a writer
            size = file.stat().st_size
            # A file with a hole may claim to be larger than any memory, and reading it would take minutes.
            current = digest_file(file) if size == written.size else FileDigest(size, 0)
            faults = list(_compare(name, current, written))
            yield from faults
            if name in SHAPES and not faults:
                decode_document(name, _read_verified(folder, name, written))


def _find_misplaced(folder: Path, manifest: Manifest) -> Iterator[str]:
    with _reading(folder.name):
        is_file = {path.name: path.is_file() and not path.is_symlink() for path in folder.iterdir()}
    for name in sorted(manifest.files.keys() - is_file.keys()):
        yield f"{name} is missing"
    for name in sorted(is_file.keys() - manifest.files.keys() - {CHECKPOINT_MANIFEST}):
        yield f"{name} does not belong to the checkpoint"
    for name in sorted(manifest.files.keys() & is_file.keys()):
        if not is_file[name]:
            yield f"{name} is not a regular file"


def _compare(name: str, current: FileDigest, written: FileDigest) -> Iterator[str]:
    if current.size != written.size:
        yield f"{name} has {current.size} bytes instead of {written.size}"
    elif current.crc32 != written.crc32:
        yield f"{name} has checksum {current.crc32:08x} instead of {written.crc32:08x}"


def _read_verified(folder: Path, name: str, written: FileDigest) -> bytes:
    data = _read(folder, name, written)
    for fault in _compare(name, FileDigest(len(data), zlib.crc32(data)), written):
        raise DamagedError(fault)
    return data


def _read(folder: Path, name: str, written: FileDigest | None = None) -> bytes:
    """Return the bytes of a file; one that is larger than what was written is refused before it fills the memory."""
    try:
        with _reading(name):
            file = folder / name
            if written is not None and file.is_file() and (size := file.stat().st_size) > written.size:
                raise DamagedError(next(_compare(name, FileDigest(size, 0), written)))
            return read_bytes(file, inf if name.endswith(SUFFIX) else LARGEST_DOCUMENT)
    except DocumentError as error:
        raise DamagedError(f"{name} {error}") from error
    except (FileNotFoundError, IsADirectoryError) as error:
        raise DamagedError(f"{name} is missing") from error


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise
    except OSError as error:
        raise UnreadableError(f"{name} cannot be read: {error.strerror}") from error
