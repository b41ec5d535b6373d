"""Disks that take no more, through the command line."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.jobs import train, working_in, write_data
from trainer.cli import main
from trainer.errors import CheckpointError
from trainer.export.folder import staging
from trainer.export.storage import reserve


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


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
def test_full_disk_is_told_as_one_and_leaves_all_as_it_was(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = state(run / "export")
    capsys.readouterr()
    with files_of_at_most(12 * 1024):
        code = main(["export", f"run={run}", f"export.formats=[{name},pth]"])
    told = capsys.readouterr().err
    assert code == 3, told
    assert told.startswith(str(run / "export")), told
    assert "cannot be written: File too large. Remove the cause, then export again" in told
    assert len(told.splitlines()) == 1
    assert state(run / "export") == before


def test_room_is_promised_by_the_file_system(tmp_path: Path) -> None:
    model, path = nn.Linear(1000, 1000), tmp_path / "model.pth"
    with files_of_at_most(6_000_000):
        reserve(path, model)
        assert path.stat().st_size == 0
        with pytest.raises(OSError, match="File too large") as caught:
            reserve(path, nn.Sequential(model, nn.Linear(1000, 1000)))
    assert caught.value.filename == str(path)


def full(*, wrapped: bool) -> None:
    if wrapped:
        raise RuntimeError(f"I/O error: No space left on device (os error {errno.ENOSPC})")
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        raise RuntimeError("unexpected pos 704 vs 662")  # noqa: B904  as torch does


@pytest.mark.parametrize("wrapped", [False, True])
def test_what_libraries_make_of_a_full_disk_is_seen_through(wrapped: bool, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot be written: No space left on device\."), staging(tmp_path):
        full(wrapped=wrapped)
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), staging(tmp_path):
        torch.load(tmp_path / "absent")
