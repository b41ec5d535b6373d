"""The contents of a checkpoint: written into a folder, and read back with every byte verified.

Importing this module does not import torch: checkpoints are chosen and verified without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trainer.checkpoint.manifest import (
    DamagedError,
    Manifest,
    decode_document,
    read_document,
    read_files,
    read_manifest,
    require_intact,
)
from trainer.checkpoint.shards import FROZEN, FROZEN_FILE, MERGED, SUFFIX, Shard, is_shard_file, tensors_name
from trainer.errors import CheckpointError, format_error
from trainer.files import atomic_io
from trainer.files.atomic_io import FileDigest
from trainer.layout import CHECKPOINT_MANIFEST, CONFIG, Document

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.distributed.ranks import Ranks

_Result = TypeVar("_Result")
_ANOTHER = "Use another checkpoint"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two steps.

    Attributes:
        step: Optimizer steps done.
        tensors: File name without suffix (`model`, `ema`, `optimizer`) -> named tensors; each becomes
            `<name>.safetensors`.
        documents: File name (`state.json`, `config.yaml`, `task.json`) -> its text.
        shard: The part of the state that this snapshot has, if several devices store it together; None is all of it.
        frozen: For `model`, the names of the tensors that the run cannot change; for `ema`, the names of those that are
            equal to the model's in every bit. They go to `frozen.safetensors`; reading puts them back.
        folder: The folder that it was read from; None if it was not read.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    documents: Mapping[str, str]
    shard: Shard | None = None
    frozen: Mapping[str, frozenset[str]] = field(default_factory=dict)
    folder: Path | None = None

    def stored_tensors(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of each file, by its name without suffix."""
        stored = {
            file: {name: tensor for name, tensor in named.items() if name not in self.frozen.get(file, ())}
            for file, named in self.tensors.items()
        }
        if (names := self.frozen.get("model")) and (model := self.tensors.get("model")):
            stored[FROZEN] = {name: tensor for name, tensor in model.items() if name in names}
        return stored

    def file_name(self, name: str) -> str:
        """Return the name of the file of these tensors."""
        return name + SUFFIX if self.shard is None else self.shard.file_name(name)

    def encode(self, name: str) -> Iterator[bytes | memoryview]:
        """Yield the bytes of the file of these tensors."""
        from trainer.checkpoint.tensors import encode

        tensors = self.stored_tensors()[name]
        if self.shard is None:
            return encode(tensors)
        rows = self.shard.rows.get("model" if name == FROZEN else name, {})
        return encode(tensors, {tensor: rows[tensor] for tensor in tensors if tensor in rows})

    def text(self, name: str) -> str:
        """Return a document.

        Raises:
            CheckpointError: There is none.
        """
        if name not in self.documents:
            raise CheckpointError(format_error(f"the checkpoint of step {self.step}", f"contains no {name}", _ANOTHER))
        return self.documents[name]

    def json(self, name: str) -> Document:
        """Return a JSON document; its shape was checked when it was read.

        Raises:
            CheckpointError: There is none.
        """
        document: Document = json.loads(self.text(name))
        return document

    def named_tensors(self, name: str) -> Mapping[str, Tensor]:
        """Return the tensors of a file.

        Raises:
            CheckpointError: There is none.
        """
        if name not in self.tensors:
            problem = f"contains no {name}{SUFFIX}"
            raise CheckpointError(format_error(f"the checkpoint of step {self.step}", problem, _ANOTHER))
        return self.tensors[name]

    @property
    def config_file(self) -> Path | None:
        """The file that its config was read from."""
        return None if self.folder is None else self.folder / CONFIG

    def find_file(self, name: str, tensor: str) -> str:
        """Return the path of the file that contains a tensor of `named_tensors(name)`, for messages."""
        from trainer.checkpoint.tensors import StoredTensors

        for file in (name, FROZEN):
            for path in sorted((self.folder or Path()).glob(f"{file}*{SUFFIX}")):
                if tensors_name(path.name) == file and tensor in StoredTensors([path]):
                    return str(path)
        return name + SUFFIX


@dataclass(frozen=True)
class StoredFile:
    """A file of a checkpoint, and its size and checksum as written."""

    path: Path
    digest: FileDigest


def write_snapshot(folder: Path, snapshot: Snapshot, ordinal: int, frozen: StoredFile | None = None) -> None:
    """Write a new checkpoint folder, synced to the device, MANIFEST.json last.

    Args:
        folder: The new folder.
        snapshot: What to write.
        ordinal: See `Manifest`.
        frozen: The file with the same frozen weights in an earlier checkpoint. The new folder gets another link to it,
            or a file of its own if the file system has no links.

    Raises:
        CheckpointError: A file operation failed, or a tensor cannot be stored.
    """
    contents: dict[str, Iterable[bytes | memoryview]] = {
        name: [text.encode()] for name, text in snapshot.documents.items()
    }
    stored = snapshot.stored_tensors()
    contents.update({snapshot.file_name(name): snapshot.encode(name) for name in stored})
    assert len(contents) == len(snapshot.documents) + len(stored), "two files with one name"
    assert CHECKPOINT_MANIFEST not in contents, "the manifest is written here"
    atomic_io.create_folder(folder)
    write_manifest(folder, Manifest(snapshot.step, ordinal, _link_or_write(folder, contents, frozen)))


def write_shard(
    folder: Path, snapshot: Snapshot, ranks: Ranks, frozen: StoredFile | None = None
) -> dict[str, FileDigest]:
    """Write the rows of this process, and in the first process the documents; `frozen` as in `write_snapshot`."""
    assert snapshot.shard is not None
    documents = snapshot.documents if ranks.is_first else {}
    contents: dict[str, Iterable[bytes | memoryview]] = {name: [text.encode()] for name, text in documents.items()}
    contents |= {snapshot.file_name(name): snapshot.encode(name) for name in snapshot.stored_tensors()}
    written = _link_or_write(folder, contents, frozen)
    atomic_io.sync_folder(folder)
    return written


def _link_or_write(
    folder: Path, contents: Mapping[str, Iterable[bytes | memoryview]], frozen: StoredFile | None
) -> dict[str, FileDigest]:
    """Write files; the file with the frozen weights becomes a link if it is known and the file system has links."""
    if frozen is None or not atomic_io.link_file(frozen.path, folder / frozen.path.name):
        return _write_files(folder, contents)
    others = {name: chunks for name, chunks in contents.items() if name != frozen.path.name}
    return {**_write_files(folder, others), frozen.path.name: frozen.digest}


def _write_files(folder: Path, contents: Mapping[str, Iterable[bytes | memoryview]]) -> dict[str, FileDigest]:
    def write(name: str) -> FileDigest:
        return atomic_io.write_file(folder / name, contents[name])

    # In parallel: one file is checksummed while another waits for the device.
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(contents, pool.map(write, contents), strict=True))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    atomic_io.write_file(folder / CHECKPOINT_MANIFEST, [manifest.render()])
    atomic_io.sync_folder(folder)


def read_snapshot(folder: Path) -> Snapshot:
    """Return the verified contents of a checkpoint folder, tensors on the CPU.

    Raises:
        DamagedError: A file is missing, altered or not in the manifest.
        CheckpointError: A newer version of trainer wrote the format.
    """
    from trainer.checkpoint.tensors import decode, decode_shards

    manifest = read_manifest(folder)
    tensors: dict[str, Mapping[str, Tensor]] = {}
    documents: dict[str, str] = {}
    shards: dict[str, dict[str, bytes]] = {}
    for file, data in read_files(folder, manifest):
        if (name := tensors_name(file)) is None:
            documents[file] = decode_document(file, data)
        elif is_shard_file(file):
            shards.setdefault(name, {})[file] = data
        else:
            tensors[name] = decode(data, file)
    for name in list(shards):
        tensors[name] = decode_shards(shards.pop(name))
    frozen = tensors.pop(FROZEN, {})
    _refuse_two_values(frozen, tensors.get("model", {}))
    tensors.update({name: {**frozen, **tensors[name]} for name in MERGED if frozen and name in tensors})
    return Snapshot(manifest.step, tensors, documents, folder=folder)


def read_snapshot_on_demand(folder: Path) -> Snapshot:
    """Return the verified contents of a checkpoint folder; its tensors are read when they are used.

    Raises:
        DamagedError: A file is missing, altered or not in the manifest.
        CheckpointError: A newer version of trainer wrote the format.
    """
    from trainer.checkpoint.tensors import StoredTensors

    manifest = read_manifest(require_intact(folder))
    paths: dict[str, list[Path]] = {}
    documents: dict[str, str] = {}
    for file in manifest.files:
        if (name := tensors_name(file)) is None:
            documents[file] = read_document(folder, file) or ""
        else:
            paths.setdefault(name, []).append(folder / file)
    frozen = paths.pop(FROZEN, [])
    _refuse_two_values(StoredTensors(frozen), StoredTensors(paths.get("model", [])))
    tensors = {name: StoredTensors(files, frozen if name in MERGED else ()) for name, files in paths.items()}
    return Snapshot(manifest.step, tensors, documents, folder=folder)


def _refuse_two_values(frozen: Iterable[str], model: Iterable[str]) -> None:
    """Raise DamagedError if a weight of the model has two values; an average has its own if its bits differ."""
    if twice := sorted(set(frozen) & set(model)):
        raise DamagedError(f"{FROZEN_FILE} contains {twice[0]}, which model.safetensors contains, too")


def load_folder(folder: Path, *, on_demand: bool = False) -> Snapshot:
    """Return the contents of the checkpoint in a folder of any name, every byte verified.

    Args:
        folder: The folder.
        on_demand: Read each tensor only when it is used (`StoredTensors`).

    Raises:
        CheckpointError: It is missing or damaged.
    """
    read = read_snapshot_on_demand if on_demand else read_snapshot
    return read_or_explain(folder, read, "Name the run folder instead to use its newest intact checkpoint")


def read_checkpoint_document(folder: Path, name: str) -> str | None:
    """Return one verified text file of the checkpoint in a folder; None if it has no such file.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    return read_or_explain(folder, lambda checkpoint: read_document(checkpoint, name), _ANOTHER)


def read_or_explain(folder: Path, read: Callable[[Path], _Result], remedy: str) -> _Result:
    try:
        return read(folder)
    except DamagedError as fault:
        problem = f"is damaged: {fault}" if folder.is_dir() else "no such checkpoint"
        raise CheckpointError(format_error(str(folder), problem, remedy)) from fault
