"""Damage of every kind is found before a byte of it is used."""

import json
import os
import random
import shutil

import pytest

from trainer.checkpoint.manifest import Damaged, Manifest, check, read_manifest, verify
from trainer.checkpoint.store import Store, load_folder
from trainer.errors import CheckpointError
from trainer.layout import CHECKPOINT_MANIFEST as MANIFEST


@pytest.fixture
def checkpoint(folder, make):
    return Store(folder, keep=2).save(make(7, 0.5))


def trials(fast, full):
    return pytest.mark.parametrize("count", [fast, pytest.param(full, marks=pytest.mark.slow)])


def drawn_place(checkpoint, generator):
    """A byte of the checkpoint, each with the same chance."""
    files = sorted(checkpoint.iterdir())
    path = generator.choices(files, [file.stat().st_size for file in files])[0]
    return path, generator.randrange(path.stat().st_size)


def assert_found(checkpoint, path):
    faults = verify(checkpoint)
    assert faults, path.name
    assert faults[0].startswith(path.name)
    with pytest.raises(CheckpointError, match=f"is damaged: {path.name}"):
        load_folder(checkpoint)


@trials(100, 1000)
def test_a_flipped_bit(checkpoint, count, figure):
    generator = random.Random(0)
    for _ in range(count):
        path, place = drawn_place(checkpoint, generator)
        data = path.read_bytes()
        flipped = data[place] ^ (1 << generator.randrange(8))
        path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
        assert_found(checkpoint, path)
        path.write_bytes(data)
    assert verify(checkpoint) == []
    figure("flipped bits detected", count, count)


@pytest.mark.slow
def test_every_bit_of_the_manifest(checkpoint):
    path = checkpoint / MANIFEST
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert_found(checkpoint, path)


@trials(40, 200)
def test_a_truncated_file(checkpoint, count, figure):
    generator = random.Random(1)
    for _ in range(count):
        path, place = drawn_place(checkpoint, generator)
        data = path.read_bytes()
        os.truncate(path, place)
        assert_found(checkpoint, path)
        path.write_bytes(data)
    assert verify(checkpoint) == []
    figure("truncated files detected", count, count)


@trials(40, 100)
def test_a_zeroed_block(checkpoint, count, figure):
    generator = random.Random(2)
    done = 0
    while done < count:
        path, place = drawn_place(checkpoint, generator)
        data = path.read_bytes()
        length = min(generator.choice([1, 8, 64, 512]), len(data) - place)
        if any(data[place : place + length]):
            path.write_bytes(data[:place] + bytes(length) + data[place + length :])
            assert_found(checkpoint, path)
            path.write_bytes(data)
            done += 1
    assert verify(checkpoint) == []
    figure("zeroed blocks detected", count, count)


def test_bytes_behind_the_end(checkpoint):
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        path.write_bytes(data + b"\n")
        assert_found(checkpoint, path)
        path.write_bytes(data)


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "config.yaml", "model.safetensors", "optimizer.safetensors"])
def test_a_missing_file(checkpoint, name):
    (checkpoint / name).unlink()
    assert verify(checkpoint) == [f"{name} is missing"]


def test_a_foreign_file(checkpoint):
    (checkpoint / "hook.py").write_text("print()")
    assert verify(checkpoint) == ["hook.py does not belong to the checkpoint"]
    with pytest.raises(CheckpointError, match=r"hook.py does not belong"):
        load_folder(checkpoint)


@pytest.mark.parametrize("stand_in", ["link", "folder"])
def test_something_else_in_place_of_a_file(checkpoint, tmp_path, stand_in):
    path = checkpoint / "model.safetensors"
    path.rename(tmp_path / "elsewhere")
    if stand_in == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    assert verify(checkpoint) == ["model.safetensors is not a regular file"]
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a regular file"):
        load_folder(checkpoint)


def test_swapped_files(checkpoint, folder, make):
    other = Store(folder, keep=2).save(make(8))
    for name in ("model.safetensors", "state.json", MANIFEST):
        copy = folder.parent / name
        shutil.copy(checkpoint / name, copy)
        shutil.copy(other / name, checkpoint / name)
        assert verify(checkpoint)
        shutil.copy(copy, checkpoint / name)
    assert verify(checkpoint) == []
    os.rename(checkpoint / "model.safetensors", checkpoint / "x")
    os.rename(checkpoint / "optimizer.safetensors", checkpoint / "model.safetensors")
    os.rename(checkpoint / "x", checkpoint / "optimizer.safetensors")
    assert len(verify(checkpoint)) == 2


def test_a_renamed_checkpoint(checkpoint, folder):
    renamed = checkpoint.rename(folder / "step-00000008")
    assert verify(renamed) == [f"{MANIFEST} belongs to step 7, not to this folder"]


def test_every_fault_is_told(checkpoint):
    (checkpoint / "state.json").unlink()
    (checkpoint / "extra").touch()
    os.truncate(checkpoint / "model.safetensors", 10)
    size = json.loads((checkpoint / MANIFEST).read_text())["files"]["model.safetensors"]["size"]
    assert verify(checkpoint) == [
        "state.json is missing",
        "extra does not belong to the checkpoint",
        f"model.safetensors has 10 bytes instead of {size}",
    ]
    with pytest.raises(Damaged, match=r"state.json is missing"):
        check(checkpoint)


def test_a_format_of_the_future(checkpoint, folder, monkeypatch):
    manifest = read_manifest(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoint.manifest.FORMAT", 2)
        (checkpoint / MANIFEST).write_bytes(manifest.render())
        assert verify(checkpoint) == []
    message = "has format 2, and this version reads formats up to 1. Upgrade trainer"
    for use in (lambda: load_folder(checkpoint), lambda: Store(folder, 2).load("last"), lambda: verify(checkpoint)):
        with pytest.raises(CheckpointError, match=message):
            use()


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "7", "{}", '{"format": 1}', '{"checksum": "00000000"}', "[" * 100_000]
)
def test_a_manifest_of_another_kind(checkpoint, text):
    (checkpoint / MANIFEST).write_text(text)
    assert verify(checkpoint)[0].startswith(MANIFEST)


def test_the_manifest_reads_back(tmp_path):
    manifest = Manifest(step=12, ordinal=3, files={})
    (tmp_path / MANIFEST).write_bytes(manifest.render())
    assert read_manifest(tmp_path) == manifest
