"""The jobs of a sweep: run one after the other in this process, or side by side in processes of their own."""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from trainer.config.sweep import SweepJob
from trainer.display import print_lines
from trainer.distributed.environment import count_gpus
from trainer.distributed.launch import (
    PARENT_FD,
    count_cores,
    end_with_parent,
    kill_all,
    own_command,
    parent_pipe,
    recorded_signals,
)
from trainer.errors import Interrupted, find_user_error
from trainer.layout import METRICS
from trainer.report.events import read_events
from trainer.shapes import to_json
from trainer.signals import end_by_signal, signals_blocked

_POLL_SECONDS = 0.05

Start = Callable[[Sequence[str]], object]
"""Runs `trainer train` with a command line."""


@dataclass(frozen=True)
class Outcome:
    """The end of a job that is not complete.

    Attributes:
        exit_code: Its exit code.
        messages: What the user should read.
        is_stopped: A signal has stopped it, or `train.max_time`; it can be resumed.
    """

    exit_code: int
    messages: list[str]
    is_stopped: bool = False


def _is_out_of_time(folder: Path) -> bool:
    """Return whether `train.max_time` has stopped the run in a folder: each job of a sweep has its own time."""
    events = read_events(folder / METRICS) if (folder / METRICS).is_file() else []
    return bool(events) and events[-1]["event"] == "stop" and events[-1].get("reason") == "train.max_time"


def run_here(jobs: Sequence[SweepJob], start: Start, folder: Path) -> Iterator[tuple[SweepJob, Outcome | None]]:
    """Run jobs one after the other in this process; yield each one with its outcome, None if it is complete."""
    for number, job in enumerate(jobs, 1):
        print_lines(f"{job.name}: job {number} of {len(jobs)}")
        outcome = run_job(job.argv, start)
        yield job, outcome
        if outcome is not None and outcome.is_stopped and not _is_out_of_time(folder / job.name):
            return
        gc.collect()  # a start keeps what is left of the job before it from being collected


def run_job(argv: Sequence[str], start: Start) -> Outcome | None:
    """Run one job in this process; return its outcome, None if it is complete."""
    try:
        start(argv)
    except Exception as error:
        user_error = find_user_error(error)
        if user_error is None:
            traceback.print_exception(error)
            return Outcome(1, [f"{type(error).__name__}: {error}"])
        messages = list(user_error.messages) or [f"ended with exit code {user_error.exit_code}."]
        return Outcome(user_error.exit_code, messages, isinstance(user_error, Interrupted))
    return None


def run_job_file(path: Path, start: Start) -> int:
    """Run the job of a file in this process, which a sweep has started; write its outcome into the same file."""
    end_with_parent(int(os.environ.pop(PARENT_FD)))
    outcome = run_job(json.loads(path.read_text(encoding="utf-8")), start)
    path.write_text(to_json(None if outcome is None else asdict(outcome)), encoding="utf-8")
    return 0 if outcome is None else outcome.exit_code


def run_in_processes(
    jobs: Iterator[SweepJob],
    num_parallel: int,
    should_stop: Callable[[SweepJob], bool] | None = None,
) -> Iterator[tuple[SweepJob, Outcome | None]]:
    """Run jobs in processes of their own; yield each one with its outcome, None if it is complete.

    The first signal is passed on to the processes, which save and end; a second one kills them and this process.

    Args:
        jobs: The jobs; the next one is read when a process is free for it.
        num_parallel: Jobs that run at the same time.
        should_stop: Says that a running job is to be stopped.
    """
    received: list[int] = []
    running: dict[int, tuple[SweepJob, subprocess.Popen[bytes]]] = {}
    signaled: set[str] = set()
    is_used_up = False
    with (
        recorded_signals(received, announces=True),
        TemporaryDirectory(prefix="trainer-") as name,
        parent_pipe() as parent,
    ):
        folder = Path(name)
        try:
            while (running or not (is_used_up or received)) and len(received) < 2:
                for slot in [slot for slot in range(num_parallel) if slot not in running]:
                    job = None if received or is_used_up else next(jobs, None)
                    is_used_up |= job is None
                    if job is not None:
                        print_lines(f"{job.name}: {' '.join(f'{key}={value}' for key, value in job.changes.items())}")
                        running[slot] = job, _start_process(job, folder, parent, slot, num_parallel)
                time.sleep(_POLL_SECONDS)
                for job, process in running.values():
                    if job.name not in signaled and (received or (should_stop is not None and should_stop(job))):
                        signaled.add(job.name)
                        process.send_signal(received[0] if received else signal.SIGTERM)
                for slot in [slot for slot, (_, process) in running.items() if process.poll() is not None]:
                    job, process = running.pop(slot)
                    yield job, _read_outcome(folder / job.name, process.returncode)
        finally:
            kill_all(process for _, process in running.values())
    if len(received) > 1:
        end_by_signal(received[1])


def _start_process(job: SweepJob, folder: Path, parent: int, slot: int, num_parallel: int) -> subprocess.Popen[bytes]:
    """Start a job in a process with its share of the cores and GPUs of this machine."""
    file = folder / job.name
    file.write_text(to_json(job.argv), encoding="utf-8")
    environment = {**os.environ, **_share(slot, num_parallel), PARENT_FD: str(parent)}
    # A signal reaches a new process once that is ready for it: the mask is inherited.
    with file.with_suffix(".txt").open("wb") as output, signals_blocked():
        return subprocess.Popen(
            own_command("--job", str(file)),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(parent,),
            start_new_session=True,  # Ctrl-C reaches this process only, which passes it on once
        )


def _share(slot: int, num_parallel: int) -> dict[str, str]:
    """Return the environment that gives a process its share of this machine's cores and GPUs."""
    share: dict[str, str] = {}
    if "OMP_NUM_THREADS" not in os.environ:
        share["OMP_NUM_THREADS"] = str(max(1, count_cores() // num_parallel))
    named = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    gpus = [gpu for gpu in named.split(",") if gpu.strip()] or [str(gpu) for gpu in range(count_gpus())]
    if len(gpus) >= num_parallel > 1:
        share["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[slot::num_parallel])
    return share


def _read_outcome(file: Path, exit_code: int) -> Outcome | None:
    """Return the outcome that a process has written, or what can be known of one that was killed."""
    with suppress(OSError, ValueError, TypeError):
        document = json.loads(file.read_text(encoding="utf-8"))
        return None if document is None else Outcome(**document)
    if exit_code >= 0:
        lines = file.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
        return Outcome(exit_code or 1, [f"ended with exit code {exit_code}. {' '.join(lines)}"])
    hint = " The system does so if memory runs out." if -exit_code == signal.SIGKILL else ""
    return Outcome(128 - exit_code, [f"was killed by {signal.Signals(-exit_code).name}.{hint}"])
