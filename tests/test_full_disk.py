"""A disk that refuses a checkpoint ends the run with a clear error and harms nothing that was saved before."""

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


# A save syncs 7 files, its folder and the parent: the 3rd checkpoint, at its 2nd file, its manifest, its publication.
@pytest.mark.parametrize("call", [22, 25, 28])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EACCES])
def test_the_run_ends_and_goes_on_when_there_is_room(
    call: int,
    number: int,
    data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert train(tmp_path / "whole", *data, *JOB) == 0
    fsync, calls = os.fsync, 0

    def refusing(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= call:
            raise OSError(number, os.strerror(number))
        fsync(file)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", refusing)
        assert train(tmp_path / "run", *data, *JOB) == 3
    told = capsys.readouterr().err
    assert os.strerror(number) in told
    assert str(tmp_path / "run" / "checkpoints") in told

    kept = sorted(folder.name for folder in (tmp_path / "run" / "checkpoints").glob("step-*"))
    assert kept[:2] == ["step-00000004", "step-00000008"]
    assert train(tmp_path / "run", *data, *JOB) == 0
    assert checkpoint_files(tmp_path / "run", STEPS) == checkpoint_files(tmp_path / "whole", STEPS)
