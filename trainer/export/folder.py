"""The export folder: staged inside itself, published by renames, described by `manifest.json`, safe on a full disk."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from trainer.documents import file_entries, is_sealed, load_export_manifest, read_export_manifest
from trainer.errors import CheckpointError, ConfigError, TrainerError, format_error
from trainer.files.atomic_io import discard, finish_files, sync
from trainer.files.storage_errors import naming_errors, storage_errors_named
from trainer.layout import EXPORT_MANIFEST, Document
from trainer.shapes import DocumentError, to_json, to_sealed_json

logger = logging.getLogger(__name__)

UNFINISHED = ".tmp-"
"""Prefix of folders that are removed at the end of an export."""

_REPLACED = f"{UNFINISHED}{EXPORT_MANIFEST}"
"""The name in a stage of the manifest that the stage replaces."""

LARGE_WEIGHTS = ".data"
"""Suffix of the file for weights that are too large for the file of their graph."""

_NO_MEMORY = re.compile(r"Failed to allocate memory|bad allocation|bad_alloc")
"""Messages of ONNX Runtime when memory runs out."""

_REMEDY = "Move it away, or delete it"
_FORCE = "Move it away, or set force=true of trainer export to replace it"


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """Provide an empty folder inside `folder` (so that renames are atomic) and remove it after the block.

    If the block fails while it publishes, the stage stays, and `complete_publishing` publishes the rest.

    Raises:
        CheckpointError: `folder` cannot be written, or another process exports into it.
    """
    with _locked(folder):
        with naming_errors(folder):
            for left in folder.glob(f"{UNFINISHED}*"):  # left by a process that was killed
                shutil.rmtree(left)
            stage = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        try:
            with storage_errors_named(folder, stage, CheckpointError):
                yield stage
        finally:
            if not _is_partly_published(stage):
                discard(stage)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which is created if it does not exist; the kernel releases it with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileExistsError as error:
        raise CheckpointError(format_error(str(folder), "is a file where an export needs a folder", _REMEDY)) from error
    except OSError as error:
        raise CheckpointError(format_error(str(folder), f"cannot be made or opened: {error.strerror}")) from error
    try:
        with suppress(OSError):  # some network file systems have no locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                problem = "another process exports into it"
                raise CheckpointError(
                    format_error(str(folder), problem, "Wait until it has finished, or stop it")
                ) from error
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # also for processes that were forked in the meantime
        os.close(descriptor)


def refuse_foreign(folder: Path, *, files: Iterable[str], folders: Iterable[str], force: bool) -> None:
    """Check that an export replaces and removes only files that an earlier export has written.

    Args:
        folder: The export folder, which need not exist.
        files: Names of files that an export writes, replaces or removes.
        folders: Names of folders that an export writes, replaces or removes.
        force: The user allows files from elsewhere to be replaced and removed.

    Raises:
        ConfigError: A file is a folder or the other way round, or a file is not in the manifest with its checksum.
    """
    entries = {entry["file"]: entry for entry in _listed_files(folder)}
    listed = (name for name in entries if "/" not in name)
    names = list(dict.fromkeys(each for name in (*files, *listed) for each in (name, f"{name}{LARGE_WEIGHTS}")))
    errors = [
        format_error(str(folder / name), "is a folder where an export writes a file", _REMEDY)
        for name in names
        if (folder / name).is_dir()
    ]
    present = [name for name in names if os.path.lexists(folder / name) and not (folder / name).is_dir()]
    for name in folders:
        if (folder / name).is_file():
            errors.append(format_error(str(folder / name), "is a file where an export writes a folder", _REMEDY))
        inside = (path for path in sorted((folder / name).rglob("*")) if path.is_file())
        present += [path.relative_to(folder).as_posix() for path in inside]
    errors += [
        format_error(str(folder / name), "was not written by an export, or has been changed since", _FORCE)
        for name in present
        if not force and not _is_written_by_export(folder, name, entries)
    ]
    if errors:
        raise ConfigError(*errors)


def _is_written_by_export(folder: Path, name: str, entries: Mapping[str, Document]) -> bool:
    if name == EXPORT_MANIFEST:
        return bool(entries)
    return name in entries and not find_fault(folder, entries[name])


def publish_files(stage: Path, folder: Path, *, known: Sequence[str]) -> None:
    """Move everything finished in `stage` into `folder`; `manifest.json` is removed first and moved last.

    So a folder with a manifest is complete, and a folder without one must not be used. All files get the permissions
    of any new file, because some writers make files that only their owner can read.

    Args:
        stage: Files and folders, which replace those with the same name.
        folder: The export folder.
        known: Names of artifacts and files of an earlier export to remove, as `remove` does. The files that the earlier
            manifest lists are removed as well.
    """
    finish_files(stage)
    moved = _published_names(stage)
    names = [*known, *_listed_bundle_files(folder), *_listed_bundle_files(stage, _REPLACED)]
    if (folder / EXPORT_MANIFEST).exists():
        os.replace(folder / EXPORT_MANIFEST, stage / _REPLACED)
        sync(folder)
    for name in names:
        if name not in moved:
            remove(folder, name)
    finished = (path for path in stage.iterdir() if not path.name.startswith(UNFINISHED))
    for path in sorted(finished, key=lambda path: path.name == EXPORT_MANIFEST):
        if path.name == EXPORT_MANIFEST:
            sync(folder)
        os.replace(path, folder / path.name)
    sync(folder)


def _published_names(stage: Path) -> set[str]:
    """Return the names in a stage's manifest that have left it, because a process was killed while it published."""
    try:
        entries = file_entries(load_export_manifest(stage))
    except (OSError, DocumentError):
        return set()
    return {name for name in (entry["file"].partition("/")[0] for entry in entries) if not (stage / name).exists()}


def _is_partly_published(stage: Path) -> bool:
    """Return whether some files of a stage, or the manifest that it replaces, have been moved already."""
    return (stage / EXPORT_MANIFEST).exists() and ((stage / _REPLACED).exists() or bool(_published_names(stage)))


def complete_publishing(folder: Path, known: Sequence[str]) -> None:
    """Publish what a process that was killed while it published has left in its stage.

    Args:
        folder: The export folder.
        known: See `publish_files`.

    Raises:
        CheckpointError: The folder cannot be written, or another process exports into it.
    """
    if (folder / EXPORT_MANIFEST).exists() or not list(folder.glob(f"{UNFINISHED}*/{EXPORT_MANIFEST}")):
        return
    with _locked(folder):
        for stage in folder.glob(f"{UNFINISHED}*"):
            if _is_complete(stage, folder):
                publish_files(stage, folder, known=known)
                logger.info("%s: completed an export that was interrupted", folder)


def _is_complete(stage: Path, folder: Path) -> bool:
    """Return whether every file in a stage's manifest is intact, in the stage or already in the export folder."""
    try:
        entries = list(file_entries(load_export_manifest(stage)))
    except (OSError, DocumentError):
        return False
    return all(not find_fault(stage, entry) or not find_fault(folder, entry) for entry in entries)


def _listed_bundle_files(folder: Path, name: str = EXPORT_MANIFEST) -> list[str]:
    """Return the files directly in a folder that its manifest lists next to the artifacts; none without a manifest."""
    try:
        manifest = load_export_manifest(folder, name)
    except (OSError, DocumentError):
        return []
    return [entry["file"] for entry in manifest["files"] if "/" not in entry["file"]]


def _listed_files(folder: Path) -> list[Document]:
    """Return the entries of all files in a folder's manifest; none without a readable manifest."""
    try:
        return list(file_entries(load_export_manifest(folder)))
    except (OSError, DocumentError):
        return []


def files_of(folder: Path, name: str) -> list[Path]:
    """Return the files of an artifact: the main one, then the one with its large weights if it exists.

    For an artifact that is a folder, return all of its files, the largest first.
    """
    main = folder / name
    if main.is_dir():
        files = [path for path in sorted(main.rglob("*")) if path.is_file()]
        return sorted(files, key=lambda path: -path.stat().st_size)
    data = folder / f"{name}{LARGE_WEIGHTS}"
    return [main, data] if data.exists() else [main]


def remove(folder: Path, name: str) -> None:
    """Remove the files of an artifact, or another file, if they exist."""
    if (folder / name).is_dir():
        shutil.rmtree(folder / name)
    for path in files_of(folder, name):
        path.unlink(missing_ok=True)


def describe(path: Path, folder: Path) -> Document:
    """Return a file's manifest entry: `file` (its path in `folder`), `bytes` and `sha256`."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest}


def verify(folder: Path) -> dict[str, str]:
    """Return a problem for each file in an export folder's manifest: "" if the file is intact.

    The result is empty for a folder that does not exist or is empty.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return {}
    try:
        manifest = load_export_manifest(folder)
    except FileNotFoundError:
        return {EXPORT_MANIFEST: "is missing: the artifacts are not complete"}
    except OSError as error:
        return {EXPORT_MANIFEST: f"cannot be read: {error.strerror}"}
    except DocumentError as error:
        return {EXPORT_MANIFEST: f"is damaged: {error}"}
    return {entry["file"]: find_fault(folder, entry) for entry in file_entries(manifest)}


def require_intact(graph: Path, documents: Sequence[str] = ()) -> None:
    """Check the file of an artifact, the files of its weights, and documents next to it, by the manifest's checksums.

    Args:
        graph: The file of the artifact.
        documents: Names of further files.

    Raises:
        CheckpointError: A file is missing, altered or not in the manifest.
    """
    folder = graph.parent
    manifest = read_export_manifest(folder) or {"artifacts": {}, "files": []}
    entries = {entry["file"]: entry for entry in file_entries(manifest)}
    artifact: Document = next((each for each in manifest["artifacts"].values() if each["file"] == graph.name), {})
    names = [graph.name, *(entry["file"] for entry in artifact.get("beside", ())), *documents]
    faults = {
        name: find_fault(folder, entries[name]) if name in entries else f"is not in {EXPORT_MANIFEST}" for name in names
    }
    if messages := [
        format_error(str(folder / name), fault, "Copy the artifact folder again, or export again")
        for name, fault in faults.items()
        if fault
    ]:
        raise CheckpointError(*messages)


@contextmanager
def blaming_artifact(graph: Path) -> Iterator[None]:
    """Report an exception of the block as an error of an artifact, which may come from anyone.

    Its files may be intact and still not belong together: a graph may compute outputs of any type and shape.

    Args:
        graph: The file of the artifact.

    Raises:
        CheckpointError: The block raised anything else than a user error.
        MemoryError: The runtime of the graph could not allocate memory.
    """
    try:
        yield
    except (TrainerError, BrokenPipeError, MemoryError):
        raise
    except Exception as error:  # ONNX Runtime raises types of its own
        raise_if_no_memory(error)
        reason = (str(error).strip() or "no reason is given").splitlines()[0]
        problem = f"cannot compute answers ({type(error).__name__}: {reason})"
        remedy = "Copy the artifact folder again, or export again"
        raise CheckpointError(format_error(str(graph), problem, remedy)) from error


def raise_if_no_memory(error: Exception) -> None:
    """Raise MemoryError if an exception of ONNX Runtime says that memory ran out."""
    if _NO_MEMORY.search(str(error)):
        raise MemoryError(str(error)) from error


def is_verifiable(folder: Path) -> bool:
    """Return whether the manifest of an export folder, if it is intact, has a checksum of itself."""
    try:
        return is_sealed(load_export_manifest(folder))
    except (OSError, DocumentError):
        return True


def find_fault(folder: Path, entry: Document) -> str:
    """Return the problem of a file with a manifest entry, or "" if the file is intact."""
    try:
        current = describe(folder / entry["file"], folder)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if current["bytes"] != entry["bytes"]:
        return f"has {current['bytes']} bytes instead of {entry['bytes']}"
    if current["sha256"] != entry["sha256"]:
        return f"has the SHA-256 {current['sha256'][:12]}… instead of {entry['sha256'][:12]}…"
    return ""


def link(path: Path, target: Path) -> None:
    """Hard-link a file, or copy it on file systems without links."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def write_manifest(path: Path, content: Document) -> None:
    """Write a document with a checksum of itself, see `seal`."""
    path.write_text(to_sealed_json(content, indent=2, ensure_ascii=False) + "\n", "utf-8")


def write_json(path: Path, content: Document) -> None:
    """Write a document as strict JSON, see `to_json`."""
    path.write_text(to_json(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
