"""Processes that are killed or told to stop at any moment leave what goes on to the same bytes, with no manual step."""

import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.jobs import TINY, checkpoint_files, events, train, working_in, write_data
from tests.support.processes import start, wait_until

STEPS = 40
JOB = [
    *TINY,
    f"train.duration={STEPS}",
    "train.eval_every=10",
    "checkpoint.every=4",
    "resume=auto",
]
Figure = Callable[[str, int, int], None]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("kill")
    with working_in(folder):
        yield [*write_data(folder), "export.formats=[torchscript]"]


@pytest.fixture(scope="module")
def whole(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train(run_dir, *data, *JOB) == 0
    return learnt(run_dir)


def learnt(run_dir: Path) -> dict[str, bytes]:
    return checkpoint_files(run_dir, STEPS)


def phases(run_dir: Path) -> dict[str, Callable[[], bool]]:
    """When a run is in the middle of something."""

    def logged(event: str, step: int) -> bool:
        metrics = run_dir / "metrics.jsonl"
        if not metrics.exists():
            return False
        # A line may be half written while it is read.
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


def go_on(run_dir: Path, data: list[str], log: Path) -> int | None:
    process = start(["train", f"run.dir={run_dir}", *JOB, *data], log)
    process.join()
    return process.exitcode


def signalled(number: signal.Signals, phase: str, data: list[str], folder: Path) -> int | None:
    """Sends a signal to a fresh run in one of its phases; its exit code."""
    run_dir, log = folder / "run", folder / "log"
    process = start(["train", f"run.dir={run_dir}", *JOB, *data], log)
    wait_until(phases(run_dir)[phase], process)
    assert process.pid is not None
    if process.is_alive():
        os.kill(process.pid, number)
    process.join(60)
    return process.exitcode


PHASES = ("start", "first step", "evaluation", "saving", "training", "final evaluation", "export")
FAST = [
    ("first step", signal.SIGTERM),
    ("evaluation", signal.SIGINT),
    ("saving", signal.SIGUSR1),
    ("export", signal.SIGTERM),
]


def check_signal(
    phase: str, number: signal.Signals, data: list[str], whole: dict[str, bytes], folder: Path, figure: Figure
) -> None:
    code = signalled(number, phase, data, folder)
    told = (folder / "log").read_text()
    assert code in (75, 0), told
    if code == 75:
        assert "trainer train resume=" in told or "start it again" in told
    assert "Traceback" not in told
    assert go_on(folder / "run", data, folder / "log") == 0, (folder / "log").read_text()
    assert learnt(folder / "run") == whole
    figure("runs stopped by a signal, resumed equal to the byte", 1, 1)


@pytest.mark.parametrize(("phase", "number"), FAST)
def test_a_signal(
    phase: str, number: signal.Signals, data: list[str], whole: dict[str, bytes], tmp_path: Path, figure: Figure
) -> None:
    check_signal(phase, number, data, whole, tmp_path, figure)


@pytest.mark.slow
@pytest.mark.parametrize("repeat", range(2))
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("phase", PHASES)
def test_every_signal_in_every_phase(
    phase: str,
    number: signal.Signals,
    repeat: int,
    data: list[str],
    whole: dict[str, bytes],
    tmp_path: Path,
    figure: Figure,
) -> None:
    check_signal(phase, number, data, whole, tmp_path, figure)


def kill_until_done(seed: int, data: list[str], folder: Path) -> int:
    """Kills a run again and again, half of the times inside a save, until it gets through; how often it was killed."""
    chance = random.Random(seed)
    run_dir, kills = folder / "run", 0
    while True:
        process = start(["train", f"run.dir={run_dir}", *JOB, *data], folder / "log")
        if kills >= 2:
            process.join()
        elif chance.random() < 0.5:
            wait_until(phases(run_dir)["saving"], process)
        else:
            process.join(chance.uniform(0.2, 2.0))
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        if process.exitcode != -signal.SIGKILL:
            assert process.exitcode == 0, (folder / "log").read_text()
            return kills


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 100))])
def test_a_run_that_is_killed_again_and_again(
    seed: int, data: list[str], whole: dict[str, bytes], tmp_path: Path, figure: Figure
) -> None:
    kills = kill_until_done(seed, data, tmp_path)

    assert kills > 0
    assert learnt(tmp_path / "run") == whole
    steps = [event["step"] for event in events(tmp_path / "run", "train")]
    assert set(steps) == set(range(1, STEPS + 1))
    figure("runs killed twice at random or inside a save, ended equal to the byte", 1, 1)


def test_two_processes_cannot_train_in_one_folder(data: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = start(["train", f"run.dir={run_dir}", *JOB, *data], tmp_path / "first")
    wait_until(phases(run_dir)["first step"], first)
    second = start(["train", f"run.dir={run_dir}", *JOB, *data], tmp_path / "second")
    second.join()

    assert first.is_alive()
    first.kill()
    first.join()
    assert second.exitcode == 3
    assert f"in use by process {first.pid}" in (tmp_path / "second").read_text()
