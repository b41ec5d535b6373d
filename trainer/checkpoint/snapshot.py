"""What one checkpoint holds, and its folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.checkpoint import atomic_io
from trainer.checkpoint.atomic_io import Content
from trainer.checkpoint.manifest import Manifest, read_files, read_manifest
from trainer.layout import CHECKPOINT_MANIFEST as MANIFEST

if TYPE_CHECKING:
    from torch import Tensor

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two steps.

    Attributes:
        step: Optimizer steps done.
        tensors: File name without its suffix (`model`, `ema`, `optimizer`) to named tensors; each becomes
            `<name>.safetensors`.
        documents: File name (`state.json`, `config.yaml`, `task.json`) to its text.
    """

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    documents: Mapping[str, str]


def write_snapshot(folder: Path, snapshot: Snapshot, ordinal: int) -> None:
    """Writes a new checkpoint folder through to the device, MANIFEST.json last.

    Raises:
        CheckpointError: A file operation failed, or a tensor is of a kind that cannot be stored.
    """
    # Imported here so that checkpoints are listed, chosen and verified without torch.
    from trainer.checkpoint.tensors import encode

    contents: dict[str, Iterable[bytes | memoryview]] = {
        name: [text.encode()] for name, text in snapshot.documents.items()
    }
    contents.update({name + _SUFFIX: encode(tensors) for name, tensors in snapshot.tensors.items()})
    assert len(contents) == len(snapshot.documents) + len(snapshot.tensors), "two files of one name"
    assert MANIFEST not in contents, "the manifest is written here"
    atomic_io.create_folder(folder)

    def write(name: str) -> Content:
        return atomic_io.write_file(folder / name, contents[name])

    # Side by side, one file is checksummed while another waits for the device.
    with ThreadPoolExecutor(4) as pool:
        written = dict(zip(contents, pool.map(write, contents), strict=True))
    atomic_io.write_file(folder / MANIFEST, [Manifest(snapshot.step, ordinal, written).render()])
    atomic_io.sync_folder(folder)


def read_snapshot(folder: Path) -> Snapshot:
    """The verified contents of a checkpoint folder, tensors on the CPU.

    Raises:
        Damaged: A file is missing, foreign or altered.
        CheckpointError: The format is of a newer version of this tool.
    """
    from trainer.checkpoint.tensors import decode

    manifest = read_manifest(folder)
    tensors: dict[str, Mapping[str, Tensor]] = {}
    documents: dict[str, str] = {}
    for name, data in read_files(folder, manifest):
        if name.endswith(_SUFFIX):
            tensors[name.removesuffix(_SUFFIX)] = decode(data)
        else:
            documents[name] = data.decode()
    return Snapshot(manifest.step, tensors, documents)
