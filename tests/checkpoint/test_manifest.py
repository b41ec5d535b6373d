"""Every type of damage is detected before any byte is used."""

import json
import os
import random
import shutil

import pytest

from tests.support.hostile_files import reseal
from trainer.checkpoint.manifest import DamagedError, Manifest, find_faults, read_manifest, require_intact
from trainer.checkpoint.snapshot import load_folder, read_checkpoint_document
from trainer.checkpoint.store import Store
from trainer.errors import CheckpointError
from trainer.layout import CHECKPOINT_MANIFEST as MANIFEST


@pytest.fixture
def checkpoint(folder, make):
    return Store(folder, keep=2).save(make(7, 0.5))


def trials(fast, full):
    return pytest.mark.parametrize("count", [fast, pytest.param(full, marks=pytest.mark.slow)])


def draw_position(checkpoint, generator):
    """Return a file and an offset; every byte of the checkpoint is equally likely."""
    files = sorted(checkpoint.iterdir())
    path = generator.choices(files, [file.stat().st_size for file in files])[0]
    return path, generator.randrange(path.stat().st_size)


def assert_detected(checkpoint, path):
    faults = find_faults(checkpoint)
    assert faults, path.name
    assert faults[0].startswith(path.name)
    with pytest.raises(CheckpointError, match=f"is damaged: {path.name}"):
        load_folder(checkpoint)


@trials(100, 1000)
def test_flipped_bit_is_detected(checkpoint, count, figure):
    generator = random.Random(0)
    for _ in range(count):
        path, place = draw_position(checkpoint, generator)
        data = path.read_bytes()
        flipped = data[place] ^ (1 << generator.randrange(8))
        path.write_bytes(data[:place] + bytes([flipped]) + data[place + 1 :])
        assert_detected(checkpoint, path)
        path.write_bytes(data)
    assert find_faults(checkpoint) == []
    figure("flipped bits detected", count, count)


@pytest.mark.slow
def test_every_flipped_bit_of_the_manifest_is_detected(checkpoint):
    path = checkpoint / MANIFEST
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        assert_detected(checkpoint, path)


@trials(40, 200)
def test_truncated_file_is_detected(checkpoint, count, figure):
    generator = random.Random(1)
    for _ in range(count):
        path, place = draw_position(checkpoint, generator)
        data = path.read_bytes()
        os.truncate(path, place)
        assert_detected(checkpoint, path)
        path.write_bytes(data)
    assert find_faults(checkpoint) == []
    figure("truncated files detected", count, count)


@trials(40, 100)
def test_zeroed_block_is_detected(checkpoint, count, figure):
    generator = random.Random(2)
    done = 0
    while done < count:
        path, place = draw_position(checkpoint, generator)
        data = path.read_bytes()
        length = min(generator.choice([1, 8, 64, 512]), len(data) - place)
        if any(data[place : place + length]):
            path.write_bytes(data[:place] + bytes(length) + data[place + length :])
            assert_detected(checkpoint, path)
            path.write_bytes(data)
            done += 1
    assert find_faults(checkpoint) == []
    figure("zeroed blocks detected", count, count)


def test_appended_bytes_are_detected(checkpoint):
    for path in checkpoint.iterdir():
        data = path.read_bytes()
        path.write_bytes(data + b"\n")
        assert_detected(checkpoint, path)
        path.write_bytes(data)


@pytest.mark.parametrize("name", [MANIFEST, "state.json", "config.yaml", "model.safetensors", "optimizer.safetensors"])
def test_missing_file_is_detected(checkpoint, name):
    (checkpoint / name).unlink()
    assert find_faults(checkpoint) == [f"{name} is missing"]


def test_foreign_file_is_detected(checkpoint):
    (checkpoint / "hook.py").write_text("print()")
    assert find_faults(checkpoint) == ["hook.py does not belong to the checkpoint"]
    with pytest.raises(CheckpointError, match=r"hook.py does not belong"):
        load_folder(checkpoint)


@pytest.mark.parametrize("stand_in", ["link", "folder"])
def test_link_or_folder_in_place_of_a_file_is_detected(checkpoint, tmp_path, stand_in):
    path = checkpoint / "model.safetensors"
    path.rename(tmp_path / "elsewhere")
    if stand_in == "link":
        path.symlink_to(tmp_path / "elsewhere")
    else:
        path.mkdir()
    assert find_faults(checkpoint) == ["model.safetensors is not a regular file"]
    with pytest.raises(CheckpointError, match=r"model.safetensors is not a regular file"):
        load_folder(checkpoint)


def test_files_swapped_between_or_within_checkpoints_are_detected(checkpoint, folder, make):
    other = Store(folder, keep=2).save(make(8))
    for name in ("model.safetensors", "state.json", MANIFEST):
        copy = folder.parent / name
        shutil.copy(checkpoint / name, copy)
        shutil.copy(other / name, checkpoint / name)
        assert find_faults(checkpoint)
        shutil.copy(copy, checkpoint / name)
    assert find_faults(checkpoint) == []
    os.rename(checkpoint / "model.safetensors", checkpoint / "x")
    os.rename(checkpoint / "optimizer.safetensors", checkpoint / "model.safetensors")
    os.rename(checkpoint / "x", checkpoint / "optimizer.safetensors")
    assert len(find_faults(checkpoint)) == 2


def test_renamed_checkpoint_is_detected(checkpoint, folder):
    renamed = checkpoint.rename(folder / "step-00000008")
    assert find_faults(renamed) == [f"{MANIFEST} belongs to step 7, not to this folder"]


def test_every_fault_is_reported(checkpoint):
    (checkpoint / "state.json").unlink()
    (checkpoint / "extra").touch()
    os.truncate(checkpoint / "model.safetensors", 10)
    size = json.loads((checkpoint / MANIFEST).read_text())["files"]["model.safetensors"]["size"]
    assert find_faults(checkpoint) == [
        "state.json is missing",
        "extra does not belong to the checkpoint",
        f"model.safetensors has 10 bytes instead of {size}",
    ]
    with pytest.raises(DamagedError, match=r"state.json is missing"):
        require_intact(checkpoint)


def test_newer_format_is_refused_with_the_remedy(checkpoint, folder, monkeypatch):
    manifest = read_manifest(checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr("trainer.checkpoint.manifest.FROZEN_FILE", "config.yaml")
        (checkpoint / MANIFEST).write_bytes(manifest.render())
    assert find_faults(checkpoint) == []
    monkeypatch.setattr("trainer.checkpoint.manifest.FORMAT", 2)
    message = "has format 3, but this version of trainer reads formats up to 2. Upgrade trainer"
    for use in (
        lambda: load_folder(checkpoint),
        lambda: Store(folder, 2).load("last"),
        lambda: find_faults(checkpoint),
    ):
        with pytest.raises(CheckpointError, match=message):
            use()


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "7", "{}", '{"format": 1}', '{"checksum": "00000000"}', "[" * 100_000]
)
def test_manifest_with_other_contents_is_damaged(checkpoint, text):
    (checkpoint / MANIFEST).write_text(text)
    assert find_faults(checkpoint)[0].startswith(MANIFEST)


def test_intact_document_that_is_not_what_was_written_is_an_error_of_the_checkpoint(checkpoint):
    (checkpoint / "config.yaml").write_bytes(b"\xff\xfe")
    reseal(checkpoint / "config.yaml")
    assert find_faults(checkpoint) == []
    with pytest.raises(CheckpointError, match=r"config\.yaml is not what was written: is not UTF-8 text"):
        read_checkpoint_document(checkpoint, "config.yaml")


def test_manifest_round_trip(tmp_path):
    manifest = Manifest(step=12, ordinal=3, files={})
    (tmp_path / MANIFEST).write_bytes(manifest.render())
    assert read_manifest(tmp_path) == manifest


def test_a_pipe_in_the_place_of_a_file_is_not_read(checkpoint):
    path = checkpoint / "model.safetensors"
    path.unlink()
    os.mkfifo(path)
    assert_detected(checkpoint, path)
    assert find_faults(checkpoint) == ["model.safetensors is not a regular file"]
