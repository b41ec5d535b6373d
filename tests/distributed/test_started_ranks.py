"""Processes that torchrun or Slurm have started: they join, agree on what to report, and train the launcher's bytes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import TINY, checkpoint_files, events, working_in, write_data
from tests.support.launched import start_launched
from tests.support.processes import PATIENCE, start
from tests.support.ranks import free_port, run_ranks, start_ranks

STEPS = 8
JOB = [f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=4"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("started")
    with working_in(folder):
        yield [*TINY, *JOB, *write_data(folder)]


@pytest.fixture(scope="module")
def launched(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The last checkpoint of a run on two devices that the tool's own launcher has started."""
    folder = tmp_path_factory.mktemp("launched")
    process = start_launched(["train", *job, f"run.dir={folder / 'run'}", "devices=2"], folder / "screen")
    process.join()
    assert process.exitcode == 0, (folder / "screen").read_text()
    return checkpoint_files(folder / "run", STEPS)


def screens(folder: Path) -> list[str]:
    """Return what each process has printed."""
    return [file.read_text() for file in sorted(folder.glob("rank-*.txt"))]


@pytest.mark.slow
def test_torchrun_trains_the_same_bytes(job: list[str], launched: dict[str, bytes], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    line = ["-m", "trainer", "train", *job, f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run([*command, *line], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert checkpoint_files(tmp_path / "run", STEPS) == launched


def test_tasks_of_slurm_train_the_same_bytes(job: list[str], launched: dict[str, bytes], tmp_path: Path) -> None:
    step = {
        "SLURM_JOB_ID": "77",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_NUM_TASKS": "2",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    processes = [
        start(
            ["train", *job, f"run.dir={tmp_path / 'run'}"],
            tmp_path / f"rank-{rank}.txt",
            {**step, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [0, 0], screens(tmp_path)
    assert checkpoint_files(tmp_path / "run", STEPS) == launched


@pytest.mark.parametrize(
    ("argument", "code", "message"),
    [
        ("optimizer.lrr=1", 2, "optimizer.lrr: unknown key"),
        ("devices=3", 2, "devices: 2 processes have been started for the run, got 3"),
        ("device=cuda", 2, "device: is not available on this machine"),
        ("run.dir=.", 3, "run.dir: contains files that are not from a run"),
        ("data.text=nothing", 6, "has no column 'nothing'"),
        ("checkpoint.monitor=nothing", 2, "checkpoint.monitor: "),
    ],
)
def test_an_error_of_all_processes_is_printed_once(
    argument: str, code: int, message: str, job: list[str], tmp_path: Path
) -> None:
    line = ["train", *job, *([] if argument.startswith("run.") else [f"run.dir={tmp_path / 'run'}"]), argument]
    assert run_ranks(line, 2, tmp_path, all_fail=True) == [code, code]
    printed = "".join(screens(tmp_path))
    assert printed.count(message) == 1
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_process_that_loses_another_prints_one_line(job: list[str], tmp_path: Path) -> None:
    line = ["train", *job, f"run.dir={tmp_path / 'run'}", "train.duration=100000"]
    processes = start_ranks(line, 2, tmp_path, REPORT_SECONDS="0.1")  # the killed process reports nothing
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not events(tmp_path / "run", "train"):
        assert all(process.is_alive() for process in processes), screens(tmp_path)
        time.sleep(0.01)
    processes[1].kill()
    processes[0].join(PATIENCE)
    (screen, _) = screens(tmp_path)
    assert processes[0].exitcode == 1
    assert screen.startswith("the connection to another process of the run was lost (")
    assert screen.count("\n") == 1


def test_a_signal_that_every_process_gets_twice_stops_the_run(job: list[str], tmp_path: Path) -> None:
    """torchrun passes on a signal that the processes have received from the terminal already."""
    processes = start_ranks(["train", *job, f"run.dir={tmp_path / 'run'}", "train.duration=100000"], 2, tmp_path)
    while not (tmp_path / "run" / "metrics.jsonl").exists() or not events(tmp_path / "run", "train"):
        assert all(process.is_alive() for process in processes), screens(tmp_path)
        time.sleep(0.01)
    for number in (signal.SIGINT, signal.SIGTERM):
        for process in processes:
            assert process.pid is not None
            os.kill(process.pid, number)
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [75, 75]
    first, second = screens(tmp_path)
    assert first.startswith("stopped after step ")
    assert second == ""


def test_a_run_folder_that_is_not_shared_is_refused(job: list[str], tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    port, processes = str(free_port()), []
    for rank, folder in enumerate(folders):
        folder.mkdir()
        variables = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
        variables |= {"MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo", "REPORT_SECONDS": str(PATIENCE)}
        before = Path.cwd()
        os.chdir(folder)
        processes.append(start(["train", *job, "run.dir=run"], tmp_path / f"rank-{rank}.txt", variables))
        os.chdir(before)
    for process in processes:
        process.join(PATIENCE)
    assert [process.exitcode for process in processes] == [3, 3]
    printed = "".join(screens(tmp_path))
    assert printed.count("run.dir: is not the same folder for all processes of the run") == 1
    assert f"rank 1 on {socket.gethostname()} cannot see it, got 'run'" in printed
    assert not any((folder / "run").exists() for folder in folders)


SOURCE = """\
import os
from pathlib import Path

from trainer.data.files import Files

ROLES = "text_pair positive negative labels value score words tags features image"


class Counted(Files):
    def __init__(self, train: str, validation: str, test: str, cache_dir: str) -> None:
        columns, shares = dict.fromkeys(ROLES.split()), {"validation": 0.1, "test": 0.1}
        super().__init__(train, validation, test, "text", "label", columns, shares, "|", None, '"', cache_dir)

    def load(self, *arguments):
        with Path("loads").open("a") as file:
            file.write(f"{os.environ.get('RANK')}\\n")
        return super().load(*arguments)
"""


def test_four_processes_that_start_cold_encode_once(job: list[str], tmp_path: Path) -> None:
    with working_in(tmp_path):
        (tmp_path / "counted.py").write_text(SOURCE)
        line = [*job, "data._target_=counted.Counted", "trust=[counted]", "train.duration=2"]
        assert run_ranks(["train", *line, "run.dir=four"], 4, tmp_path) == [0] * 4, screens(tmp_path)
        assert len((tmp_path / "loads").read_text().splitlines()) == 1
        alone = start(["train", *line, "run.dir=one", "train.accumulate=4"], tmp_path / "alone.txt")
        alone.join(PATIENCE)
        assert alone.exitcode == 0, (tmp_path / "alone.txt").read_text()
        assert len((tmp_path / "loads").read_text().splitlines()) == 1
        assert len(events(tmp_path / "four")) == len(events(tmp_path / "one"))
    assert not list((tmp_path / "encoded-cache" / "encoded").glob("*.lock"))


def run_launched(arguments: list[str], folder: Path) -> tuple[int | None, str]:
    """Run `trainer ARGUMENTS` with the tool's own launcher; return its exit code and what is on the screen."""
    process = start_launched(arguments, folder / "screen")
    process.join(PATIENCE)
    return process.exitcode, (folder / "screen").read_text()


def test_each_job_of_a_sweep_runs_on_its_devices(job: list[str], launched: dict[str, bytes], tmp_path: Path) -> None:
    with working_in(tmp_path):
        code, screen = run_launched(["train", *job, "-m", "devices=auto,2", "hydra.sweep.dir=sweep"], tmp_path)
    assert code == 0, screen
    assert screen.count("job 1: ") == 2
    assert screen.count("job 1: accuracy ") == 1
    assert checkpoint_files(tmp_path / "sweep" / "1", STEPS) == launched
    assert "devices: 1" in (tmp_path / "sweep" / "0" / "config.yaml").read_text()
    assert "devices: 2" in (tmp_path / "sweep" / "1" / "config.yaml").read_text()


def test_a_signal_ends_a_sweep(job: list[str], tmp_path: Path) -> None:
    with working_in(tmp_path):
        line = ["train", *job, "-m", "devices=2", "seed=0,1", "train.duration=100000", "hydra.sweep.dir=sweep"]
        process = start_launched(line, tmp_path / "screen")
    log = tmp_path / "sweep" / "0" / "metrics.jsonl"
    while not log.exists() or not events(log.parent, "train"):
        assert process.is_alive(), (tmp_path / "screen").read_text()
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(PATIENCE)
    assert process.exitcode == 75
    assert not (tmp_path / "sweep" / "1").exists()


LOSS = """\
import logging
import os

from trainer.errors import ConfigError
from trainer.loss.cross_entropy import CrossEntropy


class Loud(CrossEntropy):
    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__(None, smoothing, -100)
        if os.environ.get("RANK") == "1":
            logging.getLogger("loud").warning("a warning of the second process")
            if smoothing:
                raise ConfigError("loss.smoothing: is too loud.") from ValueError("the cause")
"""


def test_parts_of_ones_own_warnings_and_tracebacks(job: list[str], tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(LOSS)
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "loud.yaml").write_text("_target_: loud.Loud\nsmoothing: 0.0\n")
    line = ["train", *job, "--config-dir", "conf", "loss=loud", "trust=[loud]", "devices=2"]
    with working_in(tmp_path):
        code, screen = run_launched([*line, "run.dir=run"], tmp_path)
        assert (code, screen) == (0, "")
        assert (tmp_path / "run" / "logs" / "rank-1.log").read_text().count("a warning of the second process") == 1
        assert "second process" not in (tmp_path / "run" / "trainer.log").read_text()

        code, screen = run_launched([*line, "loss.smoothing=0.1", "--debug"], tmp_path)
    assert code == 2
    assert screen.endswith("loss.smoothing: is too loud.\n")
    assert screen.count("ValueError: the cause") == 1
