"""The launcher: exit codes and messages, signals, deaths. The processes run a line of Python instead of training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer
from tests.support.launched import children, is_running
from tests.support.processes import PATIENCE
from trainer.distributed import environment
from trainer.distributed.environment import first_host, num_processes, slurm_environment
from trainer.distributed.launch import own_command
from trainer.errors import ConfigError, ReportedError

WAIT = "time.sleep(100)"
ENDS_WITH_GROUP = "note_joined(); time.sleep(0.3); raise LostRankError('lost')"
"""The lines of a process that has lost the connection to another one."""


def start(*lines: str, grace: float = PATIENCE, ended: int = 0) -> subprocess.Popen[str]:
    """Start the launcher with a process for each line.

    Its clock stands still until `ended` processes have ended, however slow the machine is.
    """
    command = [sys.executable, "-m", "tests.support.fake_rank", *lines, str(grace), str(ended)]
    root = Path(__file__).parents[2]
    return subprocess.Popen(command, cwd=root, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def run(*lines: str, grace: float = PATIENCE, ended: int = 0) -> tuple[int, str]:
    """Run the launcher with a process for each line; return its exit code and what it prints on the screen."""
    process = start(*lines, grace=grace, ended=ended)
    _, screen = process.communicate(timeout=PATIENCE)
    return process.returncode, screen


def wait_until(ready: Callable[[], bool]) -> None:
    """Return once a condition holds."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_finds_this_package_from_every_folder(tmp_path: Path) -> None:
    without_site = own_command()
    without_site[1:1] = ["-S"]
    without_site[without_site.index("-c") + 1] = (
        "import sys; sys.path.append(sys.argv[1]); import trainer; print(trainer.__file__)"
    )
    package = subprocess.run(without_site, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    assert Path(package) == Path(trainer.__file__)


def test_the_failure_that_caused_the_others_is_reported_once() -> None:
    code, screen = run(ENDS_WITH_GROUP, "note_joined(); raise DataError('sample 3: bad')", ENDS_WITH_GROUP)
    assert (code, screen) == (6, "sample 3: bad\n")


def test_the_first_process_reports_what_all_have_agreed_on() -> None:
    code, screen = run(
        "note_joined(); time.sleep(0.3); raise Interrupted('stopped')", "note_joined(); raise ReportedError(75)"
    )
    assert (code, screen) == (75, "stopped\n")


def test_a_bug_is_reported_with_its_traceback() -> None:
    code, screen = run(ENDS_WITH_GROUP, "note_joined(); 1 / 0")
    assert code == 1
    assert screen.count("ZeroDivisionError: division by zero") == 1
    assert screen.count("Traceback") == 1


def test_the_traceback_of_a_user_error_is_kept_for_debugging() -> None:
    process = start(WAIT, "raise ConfigError('a') from ValueError('b')")
    details, screen = process.communicate(timeout=PATIENCE)
    assert screen == "a\n"
    assert "ValueError: b" in details


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_process_is_named_with_its_signal(number: signal.Signals, tmp_path: Path) -> None:
    dies = f"note_run_folder(Path('{tmp_path}')); note_joined(); os.kill(os.getpid(), {number:d})"
    code, screen = run(ENDS_WITH_GROUP, dies)
    assert code == 128 + number
    assert f"rank 1 was killed by {number.name}." in screen
    assert f"advice about {tmp_path}" in screen


def test_the_last_words_of_a_process_that_dies_are_kept() -> None:
    _, screen = run(ENDS_WITH_GROUP, "note_joined(); os.write(2, b'last words'); os.abort()")
    assert "last words" in screen


def test_no_time_is_given_before_all_have_joined() -> None:
    code, screen = run(WAIT, "raise ConfigError('no such device')", grace=1000.0)
    assert (code, screen) == (2, "no such device\n")


def test_a_process_that_does_not_end_is_killed() -> None:
    endless = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)"
    code, screen = run(endless, "note_joined(); raise DataError('bad')", grace=0.2)
    assert (code, screen) == (6, "bad\n")


def test_a_process_that_does_not_answer_is_reported() -> None:
    code, screen = run(ENDS_WITH_GROUP, "os.kill(os.getpid(), signal.SIGSTOP)", ENDS_WITH_GROUP, grace=0.5, ended=2)
    assert code == 128 + signal.SIGKILL
    assert screen.startswith("rank 1 did not answer")


def test_grace_lets_a_process_end() -> None:
    slow = "note_joined(); time.sleep(0.4); print('saved', flush=True); raise LostRankError('lost')"
    process = start(slow, "note_joined(); raise DataError('bad')")
    output, screen = process.communicate(timeout=PATIENCE)
    assert (process.returncode, screen) == (6, "bad\n")
    assert "saved" in output


ANNOUNCED = "\nStopping after this step; press again to stop without saving\n"
STOPS = "with StopSignals(ends_on_second=False):\n print(rank, flush=True)\n time.sleep(100)"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_is_passed_on_to_all(number: signal.Signals) -> None:
    process = start(STOPS, STOPS)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    _, screen = process.communicate(timeout=PATIENCE)
    assert (process.returncode, screen) == (75, f"{ANNOUNCED}stopped by {number.name}\n")


def test_a_signal_waits_for_a_process_that_starts() -> None:
    """A new interpreter would die of it."""
    process = start(*[f"time.sleep(0.5)\n{STOPS}"] * 2)
    wait_until(lambda: len(children(process.pid)) == 2)
    process.send_signal(signal.SIGTERM)
    _, screen = process.communicate(timeout=PATIENCE)
    assert (process.returncode, screen) == (75, f"{ANNOUNCED}stopped by SIGTERM\n")


def test_a_signal_to_the_process_group_reaches_the_processes_once() -> None:
    counts = (
        "count = []\nsignal.signal(signal.SIGINT, lambda *_: count.append(1))\n"
        "signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])\nprint(rank, flush=True)\n"
        "while not count: time.sleep(0.01)\n"
        "time.sleep(0.5)\nraise Interrupted(f'{len(count)} signal')"
    )
    command = [sys.executable, "-m", "tests.support.fake_rank", counts, "20", "0"]
    process = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[2],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.communicate(timeout=PATIENCE)[1] == f"{ANNOUNCED}1 signal\n"


STAYS = "for n in (2, 10, 15): signal.signal(n, signal.SIG_IGN) or print(rank, flush=True)\ntime.sleep(100)"


def test_a_second_signal_ends_all_at_once() -> None:
    process = start(STAYS, STAYS)
    assert process.stdout is not None
    process.stdout.readline()
    wait_until(lambda: len(children(process.pid)) == 2)
    ranks = children(process.pid)
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode in (-signal.SIGINT, -signal.SIGTERM)
    assert not any(map(is_running, ranks))


# While native code holds the interpreter's lock, no other thread of a process runs.
@pytest.mark.parametrize("line", [WAIT, "sum(range(10 ** 12))"])
def test_no_process_outlives_the_one_that_watches(line: str) -> None:
    process = start(*[f"print(rank, flush=True); {line}"] * 2)
    assert process.stdout is not None
    process.stdout.readline()
    wait_until(lambda: len(children(process.pid)) == 2)
    ranks = children(process.pid)
    process.kill()
    process.communicate(timeout=PATIENCE)
    wait_until(lambda: not any(map(is_running, ranks)))


STEP = {
    "SLURM_JOB_ID": "12345",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_CPUS_PER_TASK": "4",
}


def test_a_task_of_a_slurm_step_is_a_rank() -> None:
    assert slurm_environment(STEP) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "26417",
        "OMP_NUM_THREADS": "4",
    }
    assert slurm_environment({**STEP, "MASTER_PORT": "1"}).get("MASTER_PORT") is None


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {name: value for name, value in STEP.items() if name not in ("SLURM_PROCID", "SLURM_LOCALID")},
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "1", "SLURM_JOB_ID": "1"},
        {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "1", "ENVIRONMENT": "BATCH"},
        {**STEP, "RANK": "0"},
    ],
    ids=["no Slurm", "salloc", "a step of one task", "one task", "a batch script", "torchrun"],
)
def test_other_processes_are_no_ranks_of_a_slurm_step(variables: dict[str, str]) -> None:
    assert slurm_environment(variables) == {}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu2", "gpu1"),
        ("gpu[03-05,9],login1", "gpu03"),
        ("rack[2,4]gpu[0-3].local,x", "rack2gpu0.local"),
    ],
)
def test_first_host(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_devices_must_be_as_many_as_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert num_processes(3) == 3
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert num_processes("auto") == 2
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert [num_processes(devices) for devices in (1, 4, "auto")] == [4, 4, 4]
    with pytest.raises(ConfigError, match="devices: 4 processes have been started for the run, got 3"):
        num_processes(3)


def test_a_process_whose_error_another_one_reports_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_is_first_report", None)  # restores it
    texts: list[str | None] = []

    def is_first(text: str | None) -> bool:
        texts.append(text)
        return False

    environment.report_once_with(is_first)
    assert environment.is_reported_elsewhere(ReportedError(75))
    assert texts == [None]


@pytest.mark.parametrize("code", [0, 6, 75])
def test_the_example_job_of_slurm_is_queued_again_after_a_signal(code: int, tmp_path: Path) -> None:
    (tmp_path / "srun").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/line\nexit {code}\n')
    (tmp_path / "scontrol").write_text(f'#!/bin/bash\necho "$@" > {tmp_path}/requeued\n')
    for name in ("srun", "scontrol"):
        (tmp_path / name).chmod(0o755)
    script = Path(__file__).parents[2] / "scripts" / "slurm.sh"
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "9"}
    done = subprocess.run(["bash", script, "run.name=big"], env=variables, check=False)
    assert done.returncode == code
    assert (tmp_path / "line").read_text() == "--kill-on-bad-exit=1 trainer train resume=auto run.name=big\n"
    assert (tmp_path / "requeued").exists() == (code == 75)


def test_the_process_that_watches_imports_no_torch(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na b c d,x\n")
    script = (
        "import subprocess, sys\n"
        "from trainer.distributed import launch\n"
        "from trainer.cli import main\n"
        "launch._start = lambda *_: subprocess.Popen([sys.executable, '-c', ''])\n"
        f"assert main(['train', 'data=files', 'data.train={tmp_path}/train.csv', 'devices=2', *sys.argv[1:]]) == 0\n"
        "assert not {'torch', 'transformers', 'datasets', 'numpy'} & sys.modules.keys(), sys.modules.keys()\n"
    )
    for arguments in ([], ["-m", "seed=0,1"]):
        subprocess.run([sys.executable, "-c", script, *arguments], cwd=tmp_path, check=True)


LATE = """
import atexit, sys
class Late:
    def __del__(self, write=sys.__stdout__.write):
        write("finalized")
late = Late()
from trainer import cli
run = cli._main
def load_libraries_and_run(arguments):
    atexit.register(print, "ended", end=" ")
    return run(arguments)
cli._main = load_libraries_and_run
sys.exit(cli.main())
"""


@pytest.mark.parametrize(("rank", "seen"), [({}, "ended finalized"), ({"RANK": "0", "WORLD_SIZE": "1"}, "ended ")])
def test_a_process_of_several_ends_without_the_interpreters_end(rank: dict[str, str], seen: str) -> None:
    # There a thread of the process group that lets go of a tensor would abort the process: about 1 of 15 runs.
    command = [sys.executable, "-P", "-c", LATE, "trian"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **rank}, check=False)
    assert done.returncode == 2
    assert done.stdout == seen
    assert "train" in done.stderr
