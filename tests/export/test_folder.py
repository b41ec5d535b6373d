"""The export folder: staging, publishing, verification, full disks."""

import errno
import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from tests.support.disk_faults import file_size_limit
from tests.support.documents import artifact_entry, export_manifest
from tests.support.faults import Fault
from tests.support.jobs import train, working_in, write_data
from trainer.cli import main
from trainer.errors import CheckpointError
from trainer.export.folder import (
    complete_publishing,
    describe,
    publish_files,
    staging,
    verify,
    write_json,
    write_manifest,
)
from trainer.signals import exit_on_sigterm


def test_stage_and_stages_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "export" / ".tmp-killed").mkdir(parents=True)
    with staging(tmp_path / "export") as stage:
        (stage / "model.onnx").write_text("half")
        assert list(stage.parent.iterdir()) == [stage]
    assert list((tmp_path / "export").iterdir()) == []


def test_stage_is_removed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), staging(tmp_path):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_stage_is_removed_after_a_signal(tmp_path: Path) -> None:
    # Exporters raise something of their own for any `Exception`.
    with pytest.raises(SystemExit) as ended, exit_on_sigterm(), staging(tmp_path), suppress(Exception):
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_folder_in_use_by_another_process_is_refused(tmp_path: Path) -> None:
    with staging(tmp_path) as stage:
        (stage / "model.onnx").write_text("half")
        with pytest.raises(CheckpointError, match="another process exports into it"), staging(tmp_path):
            pass
        assert (stage / "model.onnx").read_text() == "half"
    with staging(tmp_path):
        pass


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "export").touch()
    for folder, fault in (("export", "is a file where an export needs a folder"), ("export/more", "Not a directory")):
        with pytest.raises(CheckpointError, match=f"{folder}: .*{fault}"), staging(tmp_path / folder):
            pass


def test_files_have_the_permissions_of_any_new_file(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with staging(tmp_path / "export") as stage:
        (stage / "safetensors").mkdir()
        for name in ("model.pth", "safetensors/model.safetensors"):
            (stage / name).touch(mode=0o600)
        publish_files(stage, tmp_path / "export", known=[])
    modes = {path.stat().st_mode for path in tmp_path.rglob("*") if path.is_file()}
    assert modes == {(tmp_path / "usual").stat().st_mode}


def test_publishing_replaces_and_removes_files(tmp_path: Path) -> None:
    for name in ("manifest.json", "model.onnx", "old.bin", "mine.txt"):
        (tmp_path / name).write_text("old")
    with staging(tmp_path) as stage:
        for name in ("manifest.json", "model.onnx", "labels.json"):
            (stage / name).write_text("new")
        publish_files(stage, tmp_path, known=["model.onnx", "old.bin"])
    content = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert content == {"manifest.json": "new", "model.onnx": "new", "labels.json": "new", "mine.txt": "old"}


@pytest.mark.parametrize("name", ["labels.json", "../labels.json"])
def test_files_of_an_earlier_manifest_are_removed_only_inside_the_folder(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / name).write_text("old")
    entry = {"file": name, "bytes": 3, "sha256": ""}
    write_manifest(folder / "manifest.json", export_manifest(files=[entry]))
    with staging(folder) as stage:
        publish_files(stage, folder, known=[])
    assert list(folder.iterdir()) == []
    assert (folder / name).exists() == (name != "labels.json")


def test_partly_published_folder_has_no_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("old")
    (tmp_path / "zzz.onnx").mkdir()  # cannot be replaced by a file
    with staging(tmp_path) as stage:
        (stage / "manifest.json").write_text("new")
        (stage / "zzz.onnx").write_text("new")
        with pytest.raises(IsADirectoryError):
            publish_files(stage, tmp_path, known=[])
    assert not (tmp_path / "manifest.json").exists()


def write_export(folder: Path, content: str, *names: str) -> Path:
    """Write files with a content, and the manifest that lists them as an artifact that is a folder and a file."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    main_file, *others = (describe(folder / name, folder) for name in names)
    artifacts = {"safetensors": artifact_entry(**main_file)}
    write_manifest(folder / "manifest.json", export_manifest(artifacts=artifacts, files=others))
    return folder


def test_killed_publishing_is_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process is killed before each of its changes of the folder; the next export completes what it began."""
    known = ["safetensors", "model.pth"]
    changes = [(os, "replace"), (os, "unlink"), (shutil, "rmtree")]
    for number in range(1, 20):
        folder = write_export(tmp_path / f"{number}", "old", "safetensors/model.safetensors", "tags.json", "old.json")
        (folder / "mine.txt").write_text("mine")
        stage = write_export(folder / ".tmp-1", "new", "safetensors/model.safetensors", "labels.json", "tags.json")
        with monkeypatch.context() as patch:
            fault = Fault(patch, changes, errno.EIO, number)
            with suppress(OSError):
                publish_files(stage, folder, known=known)
        if fault.reached < number:
            break
        complete_publishing(folder, known)
        with staging(folder):
            pass
        content = {
            path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*.*") if path.is_file()
        }
        if content.pop("manifest.json") and number > 1:
            assert set(verify(folder).values()) == {""}
            expected = {"safetensors/model.safetensors", "labels.json", "tags.json"}
            assert content == {**dict.fromkeys(expected, "new"), "mine.txt": "mine"}
    assert number > 6


def test_damaged_stage_is_not_published(tmp_path: Path) -> None:
    stage = write_export(tmp_path / ".tmp-1", "new", "safetensors/model.safetensors", "labels.json")
    (stage / "labels.json").write_text("NEW")
    complete_publishing(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == [".tmp-1"]


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_json(path, {"nan": float("nan"), "rows": [{"inf": (float("-inf"), 0.5)}], "text": "ü", "none": None})
    text = path.read_text("utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "nan": None,
        "rows": [{"inf": [None, 0.5]}],
        "text": "ü",
        "none": None,
    }
    assert text.endswith("}\n")


def test_entry_has_name_size_and_checksum(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(b"abc")
    assert describe(path, tmp_path) == {"file": "labels.json", "bytes": 3, "sha256": hashlib.sha256(b"abc").hexdigest()}


def test_verify_reports_changed_and_missing_files(tmp_path: Path) -> None:
    for name in ("model.onnx", "weights.bin", "labels.json"):
        (tmp_path / name).write_text(name)
    beside = [describe(tmp_path / "weights.bin", tmp_path)]
    artifact = artifact_entry(**describe(tmp_path / "model.onnx", tmp_path), beside=beside)
    files = [describe(tmp_path / "labels.json", tmp_path)]
    write_manifest(tmp_path / "manifest.json", export_manifest(artifacts={"onnx": artifact}, files=files))
    assert verify(tmp_path) == {"model.onnx": "", "weights.bin": "", "labels.json": ""}

    (tmp_path / "model.onnx").write_text("model.ONNX")
    (tmp_path / "weights.bin").write_text("")
    (tmp_path / "labels.json").unlink()
    faults = verify(tmp_path)
    assert faults["model.onnx"].startswith("has the SHA-256 ")
    assert faults["weights.bin"] == "has 0 bytes instead of 11"
    assert faults["labels.json"] == "is missing"


def test_manifest_that_is_a_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    assert verify(tmp_path) == {"manifest.json": "is damaged: is not a regular file"}


@pytest.mark.parametrize(
    "text", ["{", "{}", "[]", '{"artifacts": [], "files": []}', '{"artifacts": {}, "files": [{}]}']
)
def test_damaged_manifest_is_reported(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert verify(tmp_path)["manifest.json"].startswith("is damaged")


def test_verify_of_missing_empty_and_incomplete_folders(tmp_path: Path) -> None:
    assert verify(tmp_path / "absent") == verify(tmp_path) == {}
    (tmp_path / "model.onnx").touch()
    assert verify(tmp_path) == {"manifest.json": "is missing: the artifacts are not complete"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("storage")
    with working_in(folder):
        assert train(folder / "run", *write_data(folder), "train.duration=1") == 0
        assert main(["export", f"run={folder / 'run'}", "export.formats=[pth]"]) == 0
        yield folder / "run"


def state(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SLOW = ("onnx", "onnx_fp16", "onnx_int8", "pt2")


@pytest.mark.parametrize(
    "name",
    [
        *("torchscript", "pth", "pth_legacy", "safetensors"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
    ],
)
def test_full_disk_is_reported_and_leaves_the_folder_unchanged(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(run / "export")
    capsys.readouterr()
    with file_size_limit(12 * 1024):
        code = main(["export", f"run={run}", f"export.formats=[{name},pth]"])
    message = capsys.readouterr().err
    assert code == 3, message
    assert message.startswith(str(run / "export")), message
    assert (
        "cannot be written: File too large. Raise the limit of file sizes (ulimit -f), then run the command again"
        in message
    )
    assert len(message.splitlines()) == 1
    assert state(run / "export") == before


def full(*, wrapped: bool) -> None:
    if wrapped:
        raise RuntimeError(f"I/O error: No space left on device (os error {errno.ENOSPC})")
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        raise RuntimeError("unexpected pos 704 vs 662")  # noqa: B904  as torch does


@pytest.mark.parametrize("wrapped", [False, True])
def test_full_disk_is_recognized_in_errors_of_libraries(wrapped: bool, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device\."), staging(tmp_path):
        full(wrapped=wrapped)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_are_unchanged(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staging(tmp_path):
        torch.load(tmp_path / "absent")
