"""The order of a save's operations: what a power cut between any two of them would leave."""

import os
from pathlib import Path

import pytest

from trainer.checkpoint.atomic_io import checksum, create_folder, write_file
from trainer.checkpoint.store import Store
from trainer.errors import CheckpointError


@pytest.fixture
def operations(monkeypatch):
    """What is done to files, in order, each with the path it is done to."""
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


def test_a_checkpoint_gets_its_name_when_every_byte_of_it_is_durable(folder, make, operations):
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

    # The old one goes when the new name is durable too, and its files when it no longer bears a checkpoint's name.
    given_up = operations.index(("rename", folder / "step-00000001"))
    assert operations[named + 1] == ("fsync", folder)
    assert operations[given_up + 1] == ("fsync", folder)
    unlinked = [i for i, (name, _) in enumerate(operations) if name == "unlink"]
    assert len(unlinked) == len(files)
    assert named + 1 < given_up < given_up + 1 < min(unlinked)


def test_the_checksum_is_that_of_the_bytes(tmp_path):
    chunks = [bytes(range(256)) * 9000, b"", memoryview(b"end")]
    written = write_file(tmp_path / "file", chunks)
    assert (tmp_path / "file").read_bytes() == b"".join(chunks)
    assert checksum(tmp_path / "file") == written
    assert written.size == 256 * 9000 + 3


def test_a_file_is_never_written_over(tmp_path):
    write_file(tmp_path / "file", [b"first"])
    with pytest.raises(CheckpointError, match="file: cannot be written: File exists"):
        write_file(tmp_path / "file", [b"second"])
    assert (tmp_path / "file").read_bytes() == b"first"


def test_new_folders_are_durable(tmp_path, operations):
    create_folder(tmp_path / "run" / "checkpoints")
    assert {("fsync", tmp_path), ("fsync", tmp_path / "run")} == set(operations)
    operations.clear()
    create_folder(tmp_path / "run" / "checkpoints")
    assert operations == []
