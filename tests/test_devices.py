"""Several devices, here a process each on the CPU, train what one device trains."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import TINY, checkpoint_files, events, train, without_clock, working_in, write_data
from tests.support.ranks import run_ranks

STEPS = 12
JOB = [f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=4"]
"""With dropout, averaged weights and, in each epoch of 8 steps, a smaller last batch."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("devices")
    with working_in(folder):
        yield [*TINY, *JOB, *write_data(folder)]


def train_on(devices: int, run_dir: Path, *arguments: str) -> Path:
    """Train in as many processes as there are devices; return the run folder."""
    line = ["train", *arguments, f"run.dir={run_dir}"]
    assert run_ranks(line, devices, run_dir.with_suffix(".output")) == [0] * devices
    return run_dir


@pytest.fixture(scope="module")
def two_devices(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on(2, tmp_path_factory.mktemp("runs") / "two", *job)


def test_two_devices_equal_two_micro_batches_to_the_byte(two_devices: Path, job: list[str], tmp_path: Path) -> None:
    one = tmp_path / "one"
    assert train(one, *job, "train.accumulate=2") == 0
    for step in (8, STEPS):
        assert checkpoint_files(two_devices, step) == checkpoint_files(one, step)
    assert without_clock(events(two_devices)) == without_clock(events(one))


def test_the_tools_own_launch_trains_the_same_bytes(two_devices: Path, job: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = [sys.executable, "-m", "trainer", "train", *job, f"run.dir={run_dir}", "devices=2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint_files(run_dir, STEPS) == checkpoint_files(two_devices, STEPS)
    assert without_clock(events(run_dir)) == without_clock(events(two_devices))
    assert not (run_dir / "logs").exists()
