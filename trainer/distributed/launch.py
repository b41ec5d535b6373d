"""Start a process for each device of a job on this machine, pass signals on to them, and end them together.

This process only watches: it imports no torch and has no share of the work. torchrun and Slurm start the processes
themselves and set the environment that `trainer.distributed.environment` reads.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Final

from trainer.distributed.environment import JOINED, LAUNCH_FOLDER, LISTEN_FD, NCCL, RUN_FOLDER, write_note
from trainer.errors import MEMORY_REMEDIES, Interrupted, LostRankError, ReportedError, TrainerError, find_user_error
from trainer.signals import (
    STOP_SIGNALS,
    announce_stop,
    can_handle_signals,
    end_by_signal,
    end_with_parent_thread,
    note_signal,
    print_at_once,
    signals_blocked,
)

PARENT_FD: Final = "TRAINER_PARENT_FD"
"""Environment variable with the end of a pipe that is closed when the process that watches has ended."""

_JOB: Final = "job.json"

_POLL_SECONDS: Final = 0.02
_LAST_LINES: Final = 20

# `python -m trainer` would take a folder `trainer` of the working directory for this package.
_BOOTSTRAP: Final = "import sys; sys.path.append(sys.argv.pop(1)); from trainer.cli import main; sys.exit(main())"

Advice = Callable[[Path], list[str]]
"""Returns what to tell the user about a run folder after a process was lost."""


class RankError(TrainerError):
    """A process of a job failed; has its messages and its exit code."""

    def __init__(self, exit_code: int, *messages: str) -> None:
        super().__init__(*messages)
        self.exit_code = exit_code  # type: ignore[misc]  # a class variable of all other errors


@dataclass(frozen=True)
class Failure:
    """The end of a process that failed.

    Attributes:
        rank: The process.
        exit_code: Its exit code; 128 + N if signal N killed it.
        messages: What the user should read.
        is_consequence: It failed because another process had ended, which reports the reason.
        is_death: It was killed, or it stopped answering.
        details: The traceback of a user error.
    """

    rank: int
    exit_code: int
    messages: list[str]
    is_consequence: bool = False
    is_death: bool = False
    details: str = ""


# The process that watches


def launch(
    verb: str,
    config: Mapping[str, Any],
    overrides: Sequence[tuple[str, Any]],
    size: int,
    grace: float,
    advise: Advice | None = None,
) -> Path | None:
    """Run a verb in `size` processes, wait until all have ended, and return the run folder that they have noted.

    The first signal is passed on to all processes, which agree when to stop. A second one kills them and this process;
    it prints what `advise` returns.

    Args:
        verb: The verb.
        config: The config of its job.
        overrides: The changes of a stored config that the job has.
        size: The number of processes.
        grace: Seconds that the other processes have to end after one has failed; then they are killed.
        advise: Says how to go on after a process was lost.

    Raises:
        RankError: A process failed: the one that failed first, not those that failed because of it.
        Interrupted: A signal stopped all processes after the same step.
    """
    received: list[int] = []
    with (
        recorded_signals(received, announces=advise is not None),
        TemporaryDirectory(prefix="trainer-") as name,
        parent_pipe() as parent,
        socket.socket() as listening,
    ):
        folder = Path(name)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        document = {"verb": verb, "config": dict(config), "stored_overrides": list(overrides)}
        (folder / _JOB).write_text(json.dumps(document), encoding="utf-8")
        environment = {**os.environ, **_environment(size), **_connection(listening, parent, folder)}
        processes: list[subprocess.Popen[bytes]] = []
        try:
            # A signal reaches a new process once that is ready for it: the mask is inherited.
            with signals_blocked():
                processes.extend(_start(rank, folder, environment, listening.fileno(), parent) for rank in range(size))
            failures = _wait(processes, folder, grace, received)
        finally:
            kill_all(processes)
        run_folder = _read_note(folder, RUN_FOLDER)
    if len(received) > 1:
        if advise is not None:
            print_at_once("Stopped without saving.", *(advise(Path(run_folder)) if run_folder else ()))
        end_by_signal(received[1])
    if failures:
        advice = advise(Path(run_folder)) if advise and run_folder and failures[0].is_death else []
        raise _error_of(failures[0], advice)
    return Path(run_folder) if run_folder else None


def _connection(listening: socket.socket, parent: int, folder: Path) -> dict[str, str]:
    """Return the variables by which the processes find each other and this process."""
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(listening.getsockname()[1]),
        LISTEN_FD: str(listening.fileno()),
        PARENT_FD: str(parent),
        LAUNCH_FOLDER: str(folder),
    }


def _error_of(failure: Failure, advice: Sequence[str]) -> TrainerError:
    if failure.exit_code == Interrupted.exit_code:
        return Interrupted(*failure.messages)
    error = RankError(failure.exit_code, *failure.messages, *advice)
    if failure.details:
        error.add_note(f"In rank {failure.rank}:\n{failure.details}")
    return error


def count_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _environment(size: int) -> dict[str, str]:
    """Return the environment of all processes; what the user has set is left as it is."""
    defaults = {"OMP_NUM_THREADS": str(max(1, count_cores() // size)), **NCCL}
    if sys.platform == "linux":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # the host's name may not resolve
    unset = {name: value for name, value in defaults.items() if name not in os.environ}
    return {**unset, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}


def own_command(*arguments: str) -> list[str]:
    """Return the command of a process that runs this package with these arguments."""
    package = str(Path(__file__).resolve().parents[2])
    return [sys.executable, "-P", "-c", _BOOTSTRAP, package, *arguments]


def _start(
    rank: int, folder: Path, environment: Mapping[str, str], listening: int, parent: int
) -> subprocess.Popen[bytes]:
    """Start a process; the first one has the screen, the output of the others is kept in a file."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    with (folder / f"rank-{rank}.txt").open("wb") as file:
        return subprocess.Popen(
            own_command("--rank", str(folder / _JOB)),
            env={**environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else file,
            stderr=None if rank == 0 else file,
            pass_fds=(parent, listening) if rank == 0 else (parent,),
            # Ctrl-C reaches this process only, which passes it on once.
            start_new_session=True,
        )


@contextmanager
def parent_pipe() -> Iterator[int]:
    """Yield the reading end of a pipe that closes when this process ends, however it ends."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def recorded_signals(received: list[int], *, announces: bool) -> Iterator[None]:
    """Append the signals that arrive in the block to a list, instead of ending this process.

    With `announces`, the first one prints what it does.
    """

    def record(number: int, _: FrameType | None) -> None:
        received.append(number)
        note_signal(number)
        if announces and len(received) == 1:
            announce_stop()

    numbers = STOP_SIGNALS if can_handle_signals() else ()
    before = {number: signal.signal(number, record) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(
    processes: Sequence[subprocess.Popen[bytes]], folder: Path, grace: float, received: Sequence[int]
) -> list[Failure]:
    """Wait for all processes; return the failures, the one that caused the others first.

    Returns early if a second signal arrives; the processes that are left must then be killed.
    """
    failed: list[int] = []
    deadline = float("inf")
    killed: set[int] = set()
    has_forwarded = False
    while len(received) < 2:
        running = [rank for rank, process in enumerate(processes) if process.poll() is None]
        failed += [
            rank for rank, process in enumerate(processes) if rank not in failed and process.returncode not in (None, 0)
        ]
        if not running:
            break
        if received and not has_forwarded:
            has_forwarded = True
            for rank in running:
                processes[rank].send_signal(received[0])
        now = time.monotonic()
        if failed and deadline == float("inf"):
            # Until all have joined, none has begun the run: nothing can be lost.
            deadline = now + (grace if _read_note(folder, JOINED) is not None else 0.0)
        if now > deadline:
            killed.update(running)
            for rank in running:
                processes[rank].kill()
        time.sleep(_POLL_SECONDS)
    failures = [_read_failure(rank, processes[rank].returncode, folder) for rank in failed if rank not in killed]
    if killed and all(failure.is_consequence for failure in failures):
        failures.append(_describe_hang(sorted(killed)))
    return sorted(failures, key=lambda failure: failure.is_consequence)


def _describe_hang(ranks: Sequence[int]) -> Failure:
    names = f"{'ranks' if len(ranks) > 1 else 'rank'} {', '.join(map(str, ranks))}"
    problem = f"{names} did not answer the other processes within launch.timeout, nor end within launch.grace; killed."
    return Failure(ranks[0], 128 + signal.SIGKILL, [problem], is_death=True)


def _read_failure(rank: int, code: int, folder: Path) -> Failure:
    """Return the failure that a process has recorded, or what can be known of one that was killed."""
    with suppress(OSError, ValueError, TypeError):
        return Failure(**json.loads((folder / _failure_note(rank)).read_text(encoding="utf-8")))
    lines = (folder / f"rank-{rank}.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    if code >= 0:
        return Failure(rank, code, [f"rank {rank} ended with exit code {code}.", *lines])
    verb = json.loads((folder / _JOB).read_text(encoding="utf-8"))["verb"]
    hint = f" The system does so if memory runs out. {MEMORY_REMEDIES[verb]}" if -code == signal.SIGKILL else ""
    message = f"rank {rank} was killed by {signal.Signals(-code).name}.{hint}"
    return Failure(rank, 128 - code, [message, *lines], is_death=True)


def kill_all(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Kill the processes that still run, and wait until all have ended."""
    processes = list(processes)
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()


# The processes that are watched


def run_rank(path: Path, start: Callable[[str, dict[str, Any], list[Any]], None]) -> int:
    """Run this process's share of a job; return its exit code. An error is recorded for the process that watches.

    Args:
        path: The file of the job.
        start: Runs a verb, given its config and its changes of a stored config.
    """
    rank = int(os.environ["RANK"])
    end_with_parent(int(os.environ[PARENT_FD]))
    document = json.loads(path.read_text(encoding="utf-8"))
    try:
        start(document["verb"], document["config"], document["stored_overrides"])
    except Exception as error:
        failure = _describe(rank, error, document["verb"])
        write_note(_failure_note(rank), json.dumps(asdict(failure)))
        return failure.exit_code
    return 0


def _describe(rank: int, error: Exception, verb: str) -> Failure:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    user_error = find_user_error(error, verb)
    details = traceback.format_exception(error)
    if user_error is None:
        return Failure(rank, 1, ["".join(details).rstrip()])
    is_consequence = any(isinstance(cause, LostRankError | ReportedError) for cause in causes)
    return Failure(
        rank, user_error.exit_code, list(user_error.messages), is_consequence, details="".join(details).rstrip()
    )


def end_with_parent(pipe: int) -> None:
    """Kill this process when the one that watches it ends: nobody would pass a signal on to it."""

    def watch() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    # The thread does not run while native code holds the interpreter's lock; the kernel's signal arrives even then.
    end_with_parent_thread(os.getppid())
    if select.select([pipe], [], [], 0)[0]:  # that process has ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=watch, daemon=True, name="parent").start()


def _failure_note(rank: int) -> str:
    return f"failure-{rank}.json"


def _read_note(folder: Path, name: str) -> str | None:
    with suppress(OSError):
        return (folder / name).read_text(encoding="utf-8")
    return None
