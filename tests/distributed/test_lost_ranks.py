"""A run on several devices that is stopped, or whose processes fail, are killed or hang, at any moment.

It leaves no process behind, one message and intact checkpoints, and it resumes to the same bytes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from tests.support.jobs import TINY, checkpoint_files, checkpoint_steps, events, working_in, write_data
from tests.support.launched import descendants, is_running, ranks_of, start_launched
from tests.support.processes import PATIENCE, wait_until
from trainer.checkpoint.manifest import find_faults
from trainer.errors import MEMORY_REMEDIES

STEPS = 24
JOB = [
    *(f"train.duration={STEPS}", "train.eval_every=8", "checkpoint.every=4", "resume=auto", "launch.grace=100"),
    *("loss={_target_:faulty.Faulty,weight:null,label_smoothing:0.0,ignore_index:-100}", "trust=[faulty]"),
]
FAULTY = """\
import os
import signal
from pathlib import Path

from trainer.errors import RowError
from trainer.loss.cross_entropy import CrossEntropy

action, rank, step = os.environ.get("FAULT", "none:0:0").split(":")


class Faulty(CrossEntropy):
    calls = 0

    def is_due(self, fault, calls):
        is_due = (action, int(rank), int(step)) == (fault, int(os.environ.get("RANK", 0)), calls)
        if is_due:
            Path(os.environ["REACHED"]).touch()
        return is_due

    def check(self, target):
        super().check(target)
        if self.is_due("target", self.calls + 1):
            raise RowError(0, "target", "target: is bad.")

    def forward(self, output, target):
        loss = super().forward(output, target)
        self.calls += output.requires_grad
        if output.requires_grad and self.is_due("bug", self.calls):
            raise ValueError("a bug")
        if output.requires_grad and self.is_due("kill", self.calls):
            os.kill(os.getpid(), signal.SIGKILL)
        if output.requires_grad and self.is_due("stop", self.calls):
            os.kill(os.getpid(), signal.SIGSTOP)
        if output.requires_grad and self.is_due("spin", self.calls):
            sum(range(10**12))
        return loss * float("nan") if output.requires_grad and self.is_due("nan", self.calls) else loss
"""

Figure = Callable[[str, int, int], None]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("lost")
    (folder / "faulty.py").write_text(FAULTY)
    with working_in(folder):
        yield [*TINY, *JOB, *write_data(folder)]


@pytest.fixture(scope="module")
def expected(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The last checkpoint of a run that is never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run(run_dir, job)[0] == 0
    return checkpoint_files(run_dir, STEPS)


def start(run_dir: Path, job: list[str], *more: str, fault: str = "none:0:0") -> BaseProcess:
    line = ["train", *job, f"run.dir={run_dir}", "devices=2", *more]
    return start_launched(line, screen_of(run_dir), FAULT=fault, REACHED=str(run_dir.with_suffix(".reached")))


def screen_of(run_dir: Path) -> Path:
    return run_dir.with_suffix(".screen")


def run(run_dir: Path, job: list[str], *more: str, fault: str = "none:0:0") -> tuple[int | None, str]:
    """Train on two devices; return the exit code and what is on the screen."""
    screen_of(run_dir).unlink(missing_ok=True)
    process = start(run_dir, job, *more, fault=fault)
    process.join(PATIENCE)
    return process.exitcode, screen_of(run_dir).read_text()


def run_to_hang(run_dir: Path, job: list[str], grace: float, fault: str) -> tuple[int | None, str]:
    """Train until a process hangs, with the first limit that all processes keep on this machine up to the fault."""
    for timeout in (2, 10, 50, 250):
        shutil.rmtree(run_dir, ignore_errors=True)
        found = run(run_dir, job, f"launch.timeout={timeout}", f"launch.grace={grace}", fault=fault)
        if run_dir.with_suffix(".reached").exists():
            break
    return found


def check_resumes(run_dir: Path, job: list[str], expected: dict[str, bytes]) -> None:
    """Resume a run; it must end in the bytes of the run that was never stopped."""
    for step in checkpoint_steps(run_dir) if run_dir.exists() else ():
        assert not find_faults(run_dir / "checkpoints" / f"step-{step:08d}")
    code, screen = run(run_dir, job)
    assert code == 0, screen
    assert checkpoint_files(run_dir, STEPS) == expected
    steps = [event["step"] for event in events(run_dir, "train")]
    assert set(steps) == set(range(1, STEPS + 1))


def test_a_bad_target_of_one_process(job: list[str], expected: dict[str, bytes], tmp_path: Path) -> None:
    code, screen = run(tmp_path / "run", job, fault="target:1:14")
    assert code == 6
    assert screen.count("\n") == 1
    assert "target: is bad" in screen
    assert checkpoint_steps(tmp_path / "run")[-1] == 12
    check_resumes(tmp_path / "run", job, expected)


def test_a_bug_in_one_process(job: list[str], tmp_path: Path) -> None:
    code, screen = run(tmp_path / "run", job, fault="bug:1:6")
    assert code == 1
    assert screen.count("ValueError: a bug") == screen.count("Traceback") == 1


def test_a_divergence_is_reported_as_on_one_device(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, screen = run(tmp_path / "two", job, fault="nan:1:6")
    assert code == 5
    assert screen.count("the run diverged") == screen.count("Report: ") == 1

    process = start(tmp_path / "one", job, "train.accumulate=2", "devices=1", fault="nan:0:12")
    process.join(PATIENCE)
    assert process.exitcode == 5
    one, two = (tmp_path / run_dir / "diverged" / "step-00000006" for run_dir in ("one", "two"))
    assert len(json.loads((two / "report.json").read_text())["samples"]) == 8
    for name in ("report.json", "batch.safetensors"):
        assert (one / name).read_bytes() == (two / name).read_bytes()


@pytest.mark.parametrize("rank", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_the_run_which_resumes(
    rank: int, job: list[str], expected: dict[str, bytes], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    code, screen = run(run_dir, job, fault=f"kill:{rank}:14")
    assert code == 128 + signal.SIGKILL
    newest = checkpoint_steps(run_dir)[-1]
    assert newest == 12 or rank == 0
    assert screen.splitlines() == [
        f"rank {rank} was killed by SIGKILL. The system does so if memory runs out. {MEMORY_REMEDIES['train']}",
        f"The newest checkpoint is {run_dir}/checkpoints/step-{newest:08d}.",
        f"Resume with: trainer train resume={run_dir} trust=[faulty]",
    ]
    check_resumes(run_dir, job, expected)


@pytest.mark.parametrize("fault", ["stop", pytest.param("spin", marks=pytest.mark.slow)])
def test_a_process_that_hangs_is_killed(fault: str, job: list[str], tmp_path: Path) -> None:
    code, screen = run_to_hang(tmp_path / "run", job, 0.5, f"{fault}:1:6")
    assert code == 128 + signal.SIGKILL
    assert screen.startswith("rank 1 did not answer")
    assert f"Resume with: trainer train resume={tmp_path / 'run'}" in screen


@pytest.fixture(scope="module")
def expected_in_shards(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The last checkpoint of a run in shards that is never stopped."""
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert run(run_dir, [*job, "shard=true"])[0] == 0
    return checkpoint_files(run_dir, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "message"),
    [
        ("target:1:14", 6, "target: is bad"),
        ("nan:1:6", 5, "step 6: the run diverged"),
        ("bug:1:6", 1, "ValueError: a bug"),
        ("kill:0:14", 137, "rank 0 was killed by SIGKILL"),
        ("kill:1:14", 137, "rank 1 was killed by SIGKILL"),
        ("stop:0:6", 137, "rank 0 did not answer"),
        ("stop:1:6", 137, "rank 1 did not answer"),
    ],
)
def test_a_fault_of_one_process_in_shards(
    fault: str, code: int, message: str, job: list[str], expected_in_shards: dict[str, bytes], tmp_path: Path
) -> None:
    line = [*job, "shard=true"]
    found, screen = run_to_hang(tmp_path / "run", line, 3.0, fault)
    assert (found, screen.count(message)) == (code, 1), screen
    check_resumes(tmp_path / "run", line, expected_in_shards)


def moments(run_dir: Path, process: BaseProcess | None = None) -> dict[str, Callable[[], bool]]:
    """Return the conditions that tell when a run is in the middle of something."""

    def logged(event: str, step: int) -> bool:
        metrics = run_dir / "metrics.jsonl"
        return metrics.exists() and f'{{"event": "{event}", "step": {step},' in metrics.read_text()

    return {
        "start": lambda: process is not None and len(ranks_of(process.pid or 0)) == 2,
        "run folder": lambda: run_dir.exists(),
        "first step": lambda: logged("start", 0),
        "evaluation": lambda: logged("train", 8),
        "saving": lambda: any((run_dir / "checkpoints").glob(".tmp-*")),
        "training": lambda: logged("train", 13),
        "final evaluation": lambda: logged("checkpoint", STEPS),
        "export": lambda: (run_dir / "model").exists(),
    }


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
MOMENTS = tuple(moments(Path()))
RECEIVERS = ("parent", "rank 0", "rank 1", "all")
FAST = {
    ("first step", "parent", signal.SIGTERM),
    ("saving", "all", signal.SIGINT),
}


def send(number: signal.Signals, receiver: str, process: BaseProcess) -> None:
    """Send a signal to the process that watches, to one of the processes of a run, or to all of them."""
    assert process.pid is not None
    ranks = ranks_of(process.pid)
    receivers = {"parent": [process.pid], "rank 0": ranks[:1], "rank 1": ranks[1:], "all": [process.pid, *ranks]}
    for pid in receivers[receiver]:
        if is_running(pid):
            os.kill(pid, number)


@pytest.mark.parametrize(
    ("moment", "receiver", "number"),
    [
        pytest.param(moment, receiver, number, marks=() if (moment, receiver, number) in FAST else pytest.mark.slow)
        for moment in MOMENTS
        for receiver in RECEIVERS
        for number in SIGNALS
    ],
)
def test_a_signal_stops_all_processes_after_the_same_step(
    moment: str,
    receiver: str,
    number: signal.Signals,
    job: list[str],
    expected: dict[str, bytes],
    tmp_path: Path,
    figure: Figure,
) -> None:
    run_dir = tmp_path / "run"
    process = start(run_dir, job, "export.formats=[torchscript]")
    wait_until(moments(run_dir, process)[moment], process)
    if process.is_alive():
        send(number, receiver, process)
    process.join(PATIENCE)
    screen = screen_of(run_dir).read_text()
    assert process.exitcode in (75, 0), screen
    if process.exitcode == 75:
        assert ("Resume with: trainer train resume=" in screen) != ("Start the run again" in screen)
    assert "Traceback" not in screen
    check_resumes(run_dir, job, expected)
    figure("runs on two devices stopped by a signal, resumed equal to the byte", 1, 1)


def kill_at_random(seed: int, job: list[str], run_dir: Path, figure: Figure) -> None:
    """Start a run, kill the process that watches or one of the others, and check that none is left."""
    chance = random.Random(seed)
    process = start(run_dir, job, "loader.workers=1")
    assert process.pid is not None
    if chance.random() < 0.5:
        wait_until(moments(run_dir)["saving"], process)
    else:
        wait_until(moments(run_dir, process)[chance.choice(MOMENTS[:3])], process)
        time.sleep(chance.uniform(0.0, 1.5))
    all_processes = descendants(process.pid)
    victim = chance.choice([process.pid, *ranks_of(process.pid)])
    if is_running(victim):
        os.kill(victim, signal.SIGKILL)
    process.join(PATIENCE)
    assert process.exitcode in (-signal.SIGKILL, 128 + signal.SIGKILL, 0), screen_of(run_dir).read_text()
    deadline = time.monotonic() + PATIENCE
    while any(map(is_running, all_processes)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [pid for pid in all_processes if is_running(pid)]
    figure("random kills of two devices after which no process was left", 1, not left)
    assert not left


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 50))])
def test_a_killed_run_ends_in_the_same_bytes(
    seed: int, job: list[str], expected: dict[str, bytes], tmp_path: Path, figure: Figure
) -> None:
    kill_at_random(seed, job, tmp_path / "run", figure)
    check_resumes(tmp_path / "run", job, expected)
    figure("runs on two devices killed at random, ended equal to the byte", 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 120))
def test_a_killed_run_in_shards_ends_in_the_same_bytes(
    seed: int, job: list[str], expected_in_shards: dict[str, bytes], tmp_path: Path, figure: Figure
) -> None:
    line = [*job, "shard=true"]
    kill_at_random(seed, line, tmp_path / "run", figure)
    check_resumes(tmp_path / "run", line, expected_in_shards)
    figure("runs in shards killed at random, ended equal to the byte", 1, 1)
