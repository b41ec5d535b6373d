"""A disk that cannot store a checkpoint ends the run with a clear error; earlier checkpoints stay intact."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import checkpoint_files, train, working_in, write_data

STEPS = 20
JOB = [f"train.duration={STEPS}", "train.eval_every=10", "checkpoint.every=4", "resume=auto"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("disk")
    with working_in(folder):
        yield write_data(folder)


# A save syncs 7 files, the folder and its parent. These calls are in the 3rd checkpoint: its 2nd file, its manifest,
# and its publication.
@pytest.mark.parametrize(("call", "number"), [(22, errno.ENOSPC), (25, errno.EIO), (28, errno.EACCES)])
def test_failing_disk_ends_the_run_which_can_be_resumed(
    call: int,
    number: int,
    data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(tmp_path / "whole", *data, *JOB) == 0
    fsync, calls = os.fsync, 0

    def fail(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(number, os.strerror(number))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        assert train(tmp_path / "run", *data, *JOB) == 3
    message = capsys.readouterr().err
    assert os.strerror(number) in message
    assert str(tmp_path / "run" / "checkpoints") in message

    kept = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept[:2] == ["step-00000004", "step-00000008"]
    assert train(tmp_path / "run", *data, *JOB) == 0
    assert checkpoint_files(tmp_path / "run", STEPS) == checkpoint_files(tmp_path / "whole", STEPS)
