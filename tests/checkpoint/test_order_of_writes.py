"""The order of file operations in a save: a power cut between any two of them leaves a usable folder."""

import os
from pathlib import Path

import pytest

from trainer.checkpoint.store import Store
from trainer.errors import CheckpointError
from trainer.files.atomic_io import create_folder, digest_file, write_file


@pytest.fixture
def operations(monkeypatch):
    """File operations in order, each with the path it is applied to."""
    done = []
    paths = {}
    real = {name: getattr(os, name) for name in ("open", "write", "fsync", "rename", "unlink")}

    def opened(path, *args, **kwargs):
        file = real["open"](path, *args, **kwargs)
        paths[file] = Path(path)
        return file

    def recorded(name, path_of):
        def operation(first, *args, **kwargs):
            done.append((name, path_of(first)))
            return real[name](first, *args, **kwargs)

        return operation

    monkeypatch.setattr(os, "open", opened)
    for name in ("write", "fsync"):
        monkeypatch.setattr(os, name, recorded(name, paths.__getitem__))
    for name in ("rename", "unlink"):
        monkeypatch.setattr(os, name, recorded(name, Path))
    return done


def test_checkpoint_is_published_only_when_every_byte_is_durable(folder, make, operations):
    store = Store(folder, keep=2)
    for step in (1, 2):
        store.save(make(step))
    operations.clear()
    path = store.save(make(3))
    temporary = folder / ".tmp-step-00000003"
    files = [temporary / file.name for file in path.iterdir()]
    manifest = temporary / "MANIFEST.json"
    named = operations.index(("rename", temporary))
    last_write = {file: max(i for i, done in enumerate(operations) if done == ("write", file)) for file in files}
    synced = {file: operations.index(("fsync", file)) for file in files}
    assert all(last_write[file] < synced[file] for file in files)
    assert all(synced[file] < last_write[manifest] for file in files if file != manifest)
    assert synced[manifest] < operations.index(("fsync", temporary)) < named

    # The old one goes only when the new name is durable, and its files only after it has lost its name.
    renamed_old = operations.index(("rename", folder / "step-00000001"))
    assert operations[named + 1] == ("fsync", folder)
    assert operations[renamed_old + 1] == ("fsync", folder)
    unlinked = [i for i, (name, _) in enumerate(operations) if name == "unlink"]
    assert len(unlinked) == len(files)
    assert named + 1 < renamed_old < renamed_old + 1 < min(unlinked)


def test_write_file_returns_the_digest_of_the_written_bytes(tmp_path):
    chunks = [bytes(range(256)) * 9000, b"", memoryview(b"end")]
    written = write_file(tmp_path / "file", chunks)
    assert (tmp_path / "file").read_bytes() == b"".join(chunks)
    assert digest_file(tmp_path / "file") == written
    assert written.size == 256 * 9000 + 3


def test_write_file_never_overwrites(tmp_path):
    write_file(tmp_path / "file", [b"first"])
    with pytest.raises(CheckpointError, match="file: cannot be written: File exists"):
        write_file(tmp_path / "file", [b"second"])
    assert (tmp_path / "file").read_bytes() == b"first"


def test_create_folder_syncs_every_new_parent(tmp_path, operations):
    create_folder(tmp_path / "run" / "checkpoints")
    assert {("fsync", tmp_path), ("fsync", tmp_path / "run")} == set(operations)
    operations.clear()
    create_folder(tmp_path / "run" / "checkpoints")
    assert operations == []


def test_two_processes_can_create_the_same_folder(tmp_path, monkeypatch):
    folder = tmp_path / "run/eval"
    folder.mkdir(parents=True)
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setattr(Path, "exists", lambda _: False)  # the other process creates it right after this question
    create_folder(folder)
    with pytest.raises(CheckpointError, match="cannot be created"):
        create_folder(file)
