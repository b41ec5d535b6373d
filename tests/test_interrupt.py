"""A real process is told to stop in the middle of an epoch, and what it left is resumed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.jobs import TINY, checkpoint_files, events, train, without_clock, working_in, write_data
from trainer.cli import main

STEPS = 120
JOB = [f"train.duration={STEPS}", "train.eval_every=20", "checkpoint.every=5", "loader.workers=1", "resume=auto"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("interrupt")
    with working_in(folder):
        yield write_data(folder)


@pytest.fixture(scope="module")
def whole(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train(run_dir, *data, *JOB) == 0
    return run_dir


def started(run_dir: Path, data: list[str], after_step: int) -> "subprocess.Popen[str]":
    """A process that has done some steps."""
    command = [sys.executable, "-m", "trainer", "train", *TINY, f"run.dir={run_dir}", *data, *JOB]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    metrics = run_dir / "metrics.jsonl"
    while not metrics.exists() or not any(event["step"] >= after_step for event in events(run_dir, "train")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    return process


def test_a_signal_saves_and_the_resumed_run_ends_in_the_same_bytes(
    data: list[str], whole: Path, tmp_path: Path
) -> None:
    process = started(tmp_path / "run", data, after_step=11)
    # To the whole group, as a scheduler does: the loader's worker must outlive it until the step is done.
    os.killpg(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    stopped = events(tmp_path / "run", "train")[-1]["step"]

    assert process.returncode == 75
    assert f"stopped after step {stopped} of {STEPS}" in told
    assert f"go on with: trainer train resume={tmp_path / 'run'}" in told
    assert "Traceback" not in told
    assert 11 <= stopped < STEPS
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert checkpoint_files(tmp_path / "run", STEPS) == checkpoint_files(whole, STEPS)
    after = [event for event in events(whole) if event["step"] > stopped]
    tail = [event for event in events(tmp_path / "run") if event["event"] != "resume"]
    assert without_clock(tail[-len(after) :]) == without_clock(after)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_command_killed_at_a_random_moment(
    seed: int, data: list[str], whole: Path, tmp_path: Path, figure: Callable[[str, int, int], None]
) -> None:
    process = started(tmp_path / "run", data, after_step=1)
    time.sleep(random.Random(seed).uniform(0, 2))
    process.kill()
    process.communicate(timeout=60)

    assert train(tmp_path / "run", *data, *JOB) == 0
    assert checkpoint_files(tmp_path / "run", STEPS) == checkpoint_files(whole, STEPS)
    figure("commands killed at a random moment, ended equal to the byte", 1, 1)
