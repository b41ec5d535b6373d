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


@pytest.fixture(scope="module")
def expected(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The last checkpoint of a run on a disk that never fails."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train(run_dir, *data, *JOB) == 0
    return checkpoint_files(run_dir, STEPS)


# In the 3rd checkpoint: one of its files, its manifest, and its publication.
@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("model.safetensors", errno.ENOSPC),
        ("MANIFEST.json", errno.EIO),
        ("checkpoints", errno.EACCES),
    ],
)
def test_failing_disk_ends_the_run_which_can_be_resumed(
    place: str,
    number: int,
    data: list[str],
    expected: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fsync, synced = os.fsync, list[Path]()
    failed: list[int] = []

    def fail(file: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{file}")))
        is_third = any(".tmp-step-00000010" in path.parts for path in synced)
        if (is_third and synced[-1].name == place) or failed:
            failed.append(file)
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
    assert checkpoint_files(tmp_path / "run", STEPS) == expected
