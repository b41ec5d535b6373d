"""What belongs to a checkpoint, byte for byte: its MANIFEST.json, and the comparison of a folder with it."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trainer.checkpoint.atomic_io import Content, checksum
from trainer.errors import CheckpointError, format_error
from trainer.layout import CHECKPOINT_MANIFEST as MANIFEST

FORMAT: Final = 1
FOLDER: Final = re.compile(r"step-(\d{8,})")


class Damaged(Exception):  # noqa: N818  a finding: what follows from it depends on who asked
    """A checkpoint is not what was written. The message starts with the file's name."""


class Unreadable(Damaged):
    """The system could not read a file: whether the checkpoint is intact is not known."""


@dataclass(frozen=True)
class Manifest:
    """The contents of MANIFEST.json.

    Attributes:
        step: The step whose end the checkpoint holds.
        ordinal: Rises with every save. The newest checkpoint is the one saved last, which is not the one of the
            highest step where a run went on from an earlier step.
        files: Size and CRC32 of every other file of the folder.
    """

    step: int
    ordinal: int
    files: Mapping[str, Content]

    def render(self) -> bytes:
        """Its canonical bytes, which a reader demands exactly; the field `checksum` covers all of them but itself."""
        files = {name: {"size": file.size, "crc32": f"{file.crc32:08x}"} for name, file in self.files.items()}
        return _seal({"format": FORMAT, "step": self.step, "ordinal": self.ordinal, "files": files})


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder.

    Raises:
        Damaged: It is missing or not as it was written.
        CheckpointError: Its format is of a newer version of this tool.
    """
    data = _read(folder, MANIFEST)
    try:
        fields = json.loads(data)
        sealed = _seal({name: value for name, value in fields.items() if name != "checksum"})
    except (ValueError, AttributeError, RecursionError) as error:
        raise Damaged(f"{MANIFEST} is not the JSON that was written") from error
    if data != sealed:
        raise Damaged(f"{MANIFEST} does not have the checksum that it names")
    # Every later format keeps the seal, so that a flipped bit is never taken for a newer version.
    if fields["format"] > FORMAT:
        problem = f"has format {fields['format']}, and this version reads formats up to {FORMAT}"
        raise CheckpointError(format_error(str(folder / MANIFEST), problem, "Upgrade trainer to use this checkpoint"))
    files = {name: Content(file["size"], int(file["crc32"], 16)) for name, file in fields["files"].items()}
    named = FOLDER.fullmatch(folder.name)
    if named and int(named[1]) != fields["step"]:
        raise Damaged(f"{MANIFEST} belongs to step {fields['step']}, not to this folder")
    return Manifest(fields["step"], fields["ordinal"], files)


def verify(folder: Path) -> list[str]:
    """Every fault of a checkpoint folder, each one starting with a file's name; empty when it is intact.

    Raises:
        CheckpointError: Its format is of a newer version of this tool.
    """
    faults = []
    try:
        for fault in _faults(folder):
            faults.append(fault)  # noqa: PERF402  those before an exception count too
    except Damaged as last:
        faults.append(str(last))
    return faults


def check(folder: Path) -> Path:
    """The folder itself, when it is an intact checkpoint.

    Raises:
        Damaged: The first fault that `verify` finds.
    """
    for fault in _faults(folder):
        raise Damaged(fault)
    return folder


def read_files(folder: Path, manifest: Manifest) -> Iterator[tuple[str, bytes]]:
    """Name and verified bytes of every file but the manifest, one file in memory at a time.

    Raises:
        Damaged: A file is missing, foreign or altered.
    """
    for fault in _misplaced(folder, manifest):
        raise Damaged(fault)
    for name, written in manifest.files.items():
        yield name, _read_verified(folder, name, written)


def read_document(folder: Path, name: str) -> str | None:
    """One verified text file of a checkpoint (`config.yaml`), None where the checkpoint has none of that name.

    Raises:
        Damaged: The manifest or that file is.
    """
    written = read_manifest(folder).files.get(name)
    return None if written is None else _read_verified(folder, name, written).decode()


def _seal(fields: dict[str, Any]) -> bytes:
    crc = zlib.crc32(json.dumps(fields, sort_keys=True).encode())
    return (json.dumps({**fields, "checksum": f"{crc:08x}"}, indent=1, sort_keys=True) + "\n").encode()


def _faults(folder: Path) -> Iterator[str]:
    manifest = read_manifest(folder)
    yield from _misplaced(folder, manifest)
    for name, written in manifest.files.items():
        with suppress(FileNotFoundError, IsADirectoryError), _reading(name):  # told already, as misplaced
            yield from _difference(name, checksum(folder / name), written)


def _misplaced(folder: Path, manifest: Manifest) -> Iterator[str]:
    with _reading(folder.name):
        found = {path.name: path.is_file() and not path.is_symlink() for path in folder.iterdir()}
    for name in sorted(manifest.files.keys() - found.keys()):
        yield f"{name} is missing"
    for name in sorted(found.keys() - manifest.files.keys() - {MANIFEST}):
        yield f"{name} does not belong to the checkpoint"
    for name in sorted(manifest.files.keys() & found.keys()):
        if not found[name]:
            yield f"{name} is not a regular file"


def _difference(name: str, found: Content, written: Content) -> Iterator[str]:
    if found.size != written.size:
        yield f"{name} has {found.size} bytes instead of {written.size}"
    elif found.crc32 != written.crc32:
        yield f"{name} has the checksum {found.crc32:08x} instead of {written.crc32:08x}"


def _read_verified(folder: Path, name: str, written: Content) -> bytes:
    data = _read(folder, name)
    for fault in _difference(name, Content(len(data), zlib.crc32(data)), written):
        raise Damaged(fault)
    return data


def _read(folder: Path, name: str) -> bytes:
    try:
        with _reading(name):
            return (folder / name).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Damaged(f"{name} is missing") from error


@contextmanager
def _reading(name: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError):
        raise
    except OSError as error:
        raise Unreadable(f"{name} cannot be read: {error.strerror}") from error
