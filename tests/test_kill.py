"""A process that is killed or stopped at any moment leaves a run that ends in the same bytes, without manual steps."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.jobs import TINY, assert_same_end, checkpoint_files, events, train, working_in, write_data
from tests.support.processes import PATIENCE, start, wait_until
from tests.support.sources import ON_SOURCES, write_job_sources
from trainer.cli import main

STEPS = 40
JOB = [*TINY, f"train.duration={STEPS}", "train.eval_every=10", "checkpoint.every=4", "resume=auto"]
LONG_STEPS = 120
LONG_JOB = [
    *(f"train.duration={LONG_STEPS}", "train.eval_every=20", "checkpoint.every=5"),
    *("loader.workers=1", "resume=auto", "logger.console=plain"),
]
Figure = Callable[[str, int, int], None]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("kill")
    with working_in(folder):
        yield write_data(folder)


@pytest.fixture(scope="module")
def job(data: list[str]) -> list[str]:
    return [*JOB, *data, "export.formats=[torchscript]"]


@pytest.fixture(scope="module")
def expected(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The last checkpoint of a run that is never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train(run_dir, *job) == 0
    return checkpoint_files(run_dir, STEPS)


def moments(run_dir: Path) -> dict[str, Callable[[], bool]]:
    """Return the conditions that tell when a run is in the middle of something."""

    def logged(event: str, step: int) -> bool:
        metrics = run_dir / "metrics.jsonl"
        if not metrics.exists():
            return False
        # The last line may be written only in part.
        complete = metrics.read_text().rpartition("\n")[0]
        return f'{{"event": "{event}", "step": {step},' in complete

    return {
        "start": lambda: run_dir.exists(),
        "first step": lambda: logged("start", 0) or logged("resume", 0),
        "evaluation": lambda: logged("train", 10),
        "saving": lambda: any((run_dir / "checkpoints").glob(".tmp-*")),
        "training": lambda: logged("train", 23),
        "final evaluation": lambda: logged("checkpoint", STEPS),
        "export": lambda: (run_dir / "model").exists(),
    }


MOMENTS = tuple(moments(Path()))
FAST = [
    ("first step", signal.SIGTERM),
    ("evaluation", signal.SIGINT),
    ("saving", signal.SIGUSR1),
    ("export", signal.SIGTERM),
]


def check_signal(
    moment: str, number: signal.Signals, job: list[str], expected: dict[str, bytes], folder: Path, figure: Figure
) -> None:
    """Send a signal to a new run, start it again, and compare its end with a run that was never stopped."""
    run_dir, log = folder / "run", folder / "log"
    process = start(["train", f"run.dir={run_dir}", *job], log)
    wait_until(moments(run_dir)[moment], process)
    assert process.pid is not None
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(PATIENCE)
    output = log.read_text()
    assert process.exitcode in (75, 0), output
    if process.exitcode == 75:
        assert "trainer train resume=" in output or "Start the run again" in output
    assert "Traceback" not in output

    again = start(["train", f"run.dir={run_dir}", *job], log)
    again.join()
    assert again.exitcode == 0, log.read_text()
    assert checkpoint_files(run_dir, STEPS) == expected
    figure("runs stopped by a signal, resumed equal to the byte", 1, 1)


@pytest.mark.parametrize(("moment", "number"), FAST)
def test_a_signal_stops_a_run_that_resumes_to_the_same_bytes(
    moment: str, number: signal.Signals, job: list[str], expected: dict[str, bytes], tmp_path: Path, figure: Figure
) -> None:
    check_signal(moment, number, job, expected, tmp_path, figure)


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(2))
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("moment", MOMENTS)
def test_every_signal_at_every_moment(
    moment: str,
    number: signal.Signals,
    repeat: int,
    job: list[str],
    expected: dict[str, bytes],
    tmp_path: Path,
    figure: Figure,
) -> None:
    check_signal(moment, number, job, expected, tmp_path, figure)


def kill_until_done(seed: int, job: list[str], folder: Path) -> int:
    """Kill a run twice, half of the times during a save, and let it end; return the number of kills."""
    chance = random.Random(seed)
    run_dir, kills = folder / "run", 0
    while True:
        process = start(["train", f"run.dir={run_dir}", *job], folder / "log")
        if kills >= 2:
            process.join()
        elif chance.random() < 0.5:
            wait_until(moments(run_dir)["saving"], process)
        else:
            process.join(chance.uniform(0.1, 0.8))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0, (folder / "log").read_text()
            return kills


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 100))])
def test_a_killed_run_ends_in_the_same_bytes(
    seed: int, job: list[str], expected: dict[str, bytes], tmp_path: Path, figure: Figure
) -> None:
    kills = kill_until_done(seed, job, tmp_path)

    assert kills > 0
    assert checkpoint_files(tmp_path / "run", STEPS) == expected
    steps = [event["step"] for event in events(tmp_path / "run", "train")]
    assert set(steps) == set(range(1, STEPS + 1))
    figure("runs killed twice at random or inside a save, ended equal to the byte", 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ON_SOURCES)
def test_a_run_killed_on_every_source_ends_in_the_same_bytes(
    name: str, seed: int, tmp_path: Path, figure: Figure
) -> None:
    with working_in(tmp_path):
        write_job_sources(tmp_path)
        job = [*TINY[6:], *JOB[len(TINY) :], *ON_SOURCES[name]]
        assert main(["train", *job, "run.dir=whole"]) == 0
        # Some kills are in the middle of reading or encoding the data.
        shutil.rmtree("cache")
        shutil.rmtree(os.environ["TRAINER_CACHE"])

        assert kill_until_done(seed, job, tmp_path) > 0
        assert checkpoint_files(tmp_path / "run", STEPS) == checkpoint_files(tmp_path / "whole", STEPS)
    figure("runs killed twice at random or inside a save, ended equal to the byte", 1, 1)


def test_two_processes_cannot_train_in_one_folder(job: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    line = ["train", f"run.dir={run_dir}", *job, "train.duration=100000"]  # more than the second one needs
    first = start(line, tmp_path / "first")
    wait_until(moments(run_dir)["first step"], first)
    second = start(line, tmp_path / "second")
    second.join()

    assert first.is_alive()
    first.kill()
    first.join()
    assert second.exitcode == 3
    assert f"in use by process {first.pid}" in (tmp_path / "second").read_text()


@pytest.fixture(scope="module")
def long_run(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("long") / "run"
    assert train(run_dir, *data, *LONG_JOB) == 0
    return run_dir


def start_command(run_dir: Path, data: list[str], after_step: int) -> "subprocess.Popen[str]":
    """Start `python -m trainer train` as a process group of its own; return it after some steps.

    It waits when the pipe of its output is full, so it is about as far as its output has been read.
    """
    command = [sys.executable, "-m", "trainer", "train", *TINY, f"run.dir={run_dir}", *data, *LONG_JOB]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, pipesize=4096, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if re.match(rf"train +{after_step}/", line):
            return process
    raise AssertionError(process.communicate()[1])


def test_a_signal_to_the_process_group_completes_the_step(data: list[str], long_run: Path, tmp_path: Path) -> None:
    process = start_command(tmp_path / "run", data, after_step=11)
    # To the whole group, as a scheduler does: the loader's worker must live until the step is complete.
    os.killpg(process.pid, signal.SIGTERM)
    _, output = process.communicate(timeout=PATIENCE)
    stopped = events(tmp_path / "run", "train")[-1]["step"]

    assert process.returncode == 75
    assert f"stopped after step {stopped} of {LONG_STEPS}" in output
    assert f"trainer train resume={tmp_path / 'run'}" in output
    assert "Traceback" not in output
    assert 11 <= stopped < LONG_STEPS
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert_same_end(tmp_path / "run", long_run, stopped)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_a_command_killed_at_a_random_moment(
    seed: int, data: list[str], long_run: Path, tmp_path: Path, figure: Figure
) -> None:
    process = start_command(tmp_path / "run", data, after_step=1)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=random.Random(seed).uniform(0, 2))
    process.kill()
    process.communicate(timeout=PATIENCE)

    assert train(tmp_path / "run", *data, *LONG_JOB) == 0
    assert checkpoint_files(tmp_path / "run", LONG_STEPS) == checkpoint_files(long_run, LONG_STEPS)
    figure("commands killed at a random moment, ended equal to the byte", 1, 1)
