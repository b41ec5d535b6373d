"""The export folder: staged beside itself, published by renames, described by `manifest.json`."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import isfinite
from pathlib import Path
from typing import Any

from trainer.errors import CheckpointError, format_error
from trainer.export.storage import storage_told

MANIFEST = "manifest.json"
UNFINISHED = ".tmp-"
"""What the names of folders begin with that are gone once an export is done."""

LARGE_WEIGHTS = ".data"
"""What is added to the name of a graph for that of the file with weights too large for it."""

_MOVE = "Move it away, or delete it"


@contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """An empty folder inside `folder` (the same file system, so that a rename is atomic), gone afterwards.

    Raises:
        CheckpointError: `folder` cannot be written, or another process exports into it.
    """
    with _locked(folder):
        try:
            for left in folder.glob(f"{UNFINISHED}*"):  # of a process that was killed
                shutil.rmtree(left)
            stage = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        except OSError as error:
            raise CheckpointError(format_error(str(folder), f"cannot be written: {error.strerror}")) from error
        try:
            with storage_told(folder, stage):
                yield stage
        finally:
            shutil.rmtree(stage)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder, made if need be; the kernel lets go of it with the process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileExistsError as error:
        problem = "is a file where an export makes a folder"
        raise CheckpointError(format_error(str(folder), problem, _MOVE)) from error
    except OSError as error:
        raise CheckpointError(format_error(str(folder), f"cannot be made or opened: {error.strerror}")) from error
    try:
        with suppress(OSError):  # some file systems of networks have no locks
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                problem = "another process exports into it"
                raise CheckpointError(
                    format_error(str(folder), problem, "Wait until that is done, or stop it")
                ) from error
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_UN)  # also for processes that were forked meanwhile
        os.close(held)


def refuse_foreign(folder: Path, *, files: Iterable[str], folders: Iterable[str]) -> None:
    """Looks for what somebody else has laid where an export writes.

    Args:
        folder: The export folder; it may not be there.
        files: Names of files that an export writes, replaces or removes.
        folders: The same of folders.

    Raises:
        CheckpointError: A file is a folder or the other way round, or a folder has files of which no manifest tells.
    """
    faults = [
        format_error(str(folder / name), "is a folder where an export writes a file", _MOVE)
        for name in dict.fromkeys(files)
        if (folder / name).is_dir()
    ]
    listed = _listed(folder)
    for name in folders:
        if (folder / name).is_file():
            faults.append(format_error(str(folder / name), "is a file where an export writes a folder", _MOVE))
        inside = (path for path in sorted((folder / name).rglob("*")) if path.is_file())
        strange = [path for path in inside if path.relative_to(folder).as_posix() not in listed]
        faults += [format_error(str(path), "is in a folder that an export replaces", _MOVE) for path in strange]
    if faults:
        raise CheckpointError(*faults)


def publish_files(stage: Path, folder: Path, *, known: Sequence[str]) -> None:
    """Moves all of `stage` that is finished into `folder`; `manifest.json` goes first and comes last.

    So a folder with a manifest is complete, and one without is not to be used.

    Args:
        stage: Files and folders.
        folder: Where they replace those of the same name.
        known: Names that an earlier call may have left in `folder` and that are removed, as by `remove`. So are the
            files that its manifest describes.

    All files get the permissions of any new file: some writers make theirs for their owner alone.
    """
    umask = os.umask(0)
    os.umask(umask)
    for path in stage.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~umask)
    names = [*known, *_described(folder)]
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in names:
        remove(folder, name)
    done = (path for path in stage.iterdir() if not path.name.startswith(UNFINISHED))
    for path in sorted(done, key=lambda path: path.name == MANIFEST):
        os.replace(path, folder / path.name)


def _described(folder: Path) -> list[str]:
    """The files right in a folder that its manifest describes beside the artifacts; none where it says nothing."""
    try:
        names = [entry["file"] for entry in json.loads((folder / MANIFEST).read_text("utf-8"))["files"]]
        return [name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _listed(folder: Path) -> set[str]:
    """All files that a folder's manifest describes; none where it says nothing."""
    try:
        return {entry["file"] for entry in _entries_of(json.loads((folder / MANIFEST).read_text("utf-8")))}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def _entries_of(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a manifest says of each file: of artifacts, of those beside them, of the others."""
    artifacts = manifest["artifacts"].values()
    beside = [each for entry in artifacts for each in entry.get("beside", ())]
    return [*artifacts, *beside, *manifest["files"]]


def files_of(folder: Path, name: str) -> list[Path]:
    """The files of an artifact: the main one, then the one with its large weights, where there is one.

    Of an artifact that is a folder all its files, the largest first.
    """
    main = folder / name
    if main.is_dir():
        files = [path for path in sorted(main.rglob("*")) if path.is_file()]
        return sorted(files, key=lambda path: -path.stat().st_size)
    data = folder / f"{name}{LARGE_WEIGHTS}"
    return [main, data] if data.exists() else [main]


def remove(folder: Path, name: str) -> None:
    """Removes an artifact, a file or a folder, and what it needs beside it, as far as they are there."""
    if (folder / name).is_dir():
        shutil.rmtree(folder / name)
    for path in files_of(folder, name):
        path.unlink(missing_ok=True)


def describe(path: Path, folder: Path) -> dict[str, Any]:
    """`file` (its path in `folder`), `bytes` and `sha256` of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"file": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": digest}


def verify(folder: Path) -> dict[str, str]:
    """Every file that an export folder's manifest describes, with what is wrong with it; "" where nothing is.

    A folder that is absent or empty has none.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return {}
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
        return {entry["file"]: fault_of(folder, entry) for entry in _entries_of(content)}
    except FileNotFoundError:
        return {MANIFEST: "is missing: the artifacts are not complete"}
    except OSError as error:
        return {MANIFEST: f"cannot be read: {error.strerror}"}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {MANIFEST: f"is not what was written ({type(error).__name__}: {error})"}


def fault_of(folder: Path, written: Mapping[str, Any]) -> str:
    """What is wrong with a file that `describe` described; "" where nothing is."""
    try:
        found = describe(folder / written["file"], folder)
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if found["bytes"] != written["bytes"]:
        return f"has {found['bytes']} bytes instead of {written['bytes']}"
    if found["sha256"] != written["sha256"]:
        return f"has the SHA-256 {found['sha256'][:12]}… instead of {written['sha256'][:12]}…"
    return ""


def link(path: Path, target: Path) -> None:
    """Gives a file a second name, and where the file system has no such thing, a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path, target)
    except OSError:
        shutil.copyfile(path, target)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes what `to_json` gives."""
    path.write_text(to_json(content), "utf-8")


def to_json(content: Mapping[str, Any]) -> str:
    """Strict JSON: a number that is not finite, which JSON does not know, becomes null."""
    return json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value
