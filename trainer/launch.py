"""Start a process for each device of a job on this machine, pass signals on to them, and end them together.

This process only watches: it imports no torch and has no share of the work. `torchrun` and Slurm start the processes
themselves; each of them is told its rank by the environment.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Final

from trainer.errors import ConfigError, Interrupted, LostRankError, ReportedError, TrainerError, format_error
from trainer.signals import STOP_SIGNALS, end_with_parent_thread, signals_blocked

LISTEN_FD: Final = "TRAINER_LISTEN_FD"
"""Environment variable with the open socket on which the first process listens: no other process can take its port."""

_PARENT_FD: Final = "TRAINER_PARENT_FD"
"""Environment variable with the end of a pipe that is closed when the process that watches has ended."""

_FOLDER: Final = "TRAINER_LAUNCH_DIR"
"""Environment variable with the folder in which the processes leave notes for the process that watches."""

_JOB: Final = "job.json"
_JOINED: Final = "joined"
_RUN_FOLDER: Final = "run-folder"

_POLL_SECONDS: Final = 0.02
_REPORT_SECONDS: Final = 5.0
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


# The processes of a job


def num_processes(devices: int | str, device: str = "auto") -> int:
    """Return the number of processes of a job: those that torchrun or Slurm have started, else one for each device.

    Args:
        devices: The number of devices; `auto` counts the GPUs.
        device: The device's name; `auto` counts no GPUs if it is another device.

    Raises:
        ConfigError: The processes that were started are not as many as `devices`.
    """
    if not is_rank():
        if devices != "auto":
            return int(devices)
        return count_gpus() if device in ("auto", "cuda") else 1
    size = int(os.environ.get("WORLD_SIZE", 1))
    if devices not in ("auto", 1, size):
        problem = f"{size} process{'' if size == 1 else 'es'} of the run have been started"
        with reported_once_per_machine():
            raise ConfigError(format_error("devices", problem, "Leave it out, or set it to this number", value=devices))
    return size


def is_rank() -> bool:
    """Return whether this process is one of several that train together."""
    return "RANK" in os.environ


def is_watched() -> bool:
    """Return whether `launch` has started this process, and watches it."""
    return _FOLDER in os.environ


def is_first_rank() -> bool:
    """Return whether this process writes the results of a job: it is the first of several, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def is_first_on_machine() -> bool:
    """Return whether this process may print what all processes of a job know."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or not is_rank()


def count_gpus() -> int:
    """Return the number of visible NVIDIA GPUs, found without torch; 1 if there is none."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return max(1, len([name for name in visible.split(",") if name.strip()]))
    return max(1, len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))


@contextmanager
def reported_once_per_machine() -> Iterator[None]:
    """Silence a user error in all processes of a machine except the first: it is the same in each of them."""
    try:
        yield
    except TrainerError as error:
        if not is_first_on_machine():
            raise ReportedError(error.exit_code) from error
        raise


def slurm_environment(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables with which a task of a Slurm step joins the other tasks; empty outside such a step.

    `srun` sets the variables that are read here, of the step or else of the job. A batch script itself and a step of
    one task are no group. What is set already is left as it is.

    Args:
        variables: The environment of this process.
    """
    size = variables.get("SLURM_STEP_NUM_TASKS") or variables.get("SLURM_NTASKS") or "1"
    is_batch_script = variables.get("ENVIRONMENT") == "BATCH" and "SLURM_STEP_NUM_TASKS" not in variables
    if "RANK" in variables or "SLURM_PROCID" not in variables or is_batch_script or int(size) < 2:
        return {}
    nodes = next((variables[name] for name in _NODE_LISTS if variables.get(name)), "127.0.0.1")
    job, step = (int(variables.get(name) or 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    defaults = {
        "LOCAL_RANK": variables.get("SLURM_LOCALID", "0"),
        "MASTER_ADDR": first_host(nodes),
        # Below the ports that the system gives out, and rarely the same for two steps on one machine.
        "MASTER_PORT": str(20000 + (job * 7 + step) % 10000),
        "OMP_NUM_THREADS": variables.get("SLURM_CPUS_PER_TASK") or "1",
    }
    unset = {name: value for name, value in defaults.items() if name not in variables}
    return {"RANK": variables["SLURM_PROCID"], "WORLD_SIZE": size, **unset}


_NODE_LISTS: Final = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")


def first_host(nodes: str) -> str:
    """Return the first host of a Slurm node list: `gpu03` of `gpu[03-05,9],login1`."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    assert first is not None
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0])


def set_rank_defaults() -> None:
    """Complete the environment of a process that torchrun or Slurm have started."""
    os.environ.update(slurm_environment(os.environ))
    if is_rank():
        os.environ.update({name: value for name, value in _NCCL.items() if name not in os.environ})


_NCCL: Final = {
    # Reductions inside a switch may sum in another order from run to run.
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_COLLNET_ENABLE": "0",
}


# The process that watches


def launch(
    verb: str,
    config: Mapping[str, Any],
    overrides: Sequence[tuple[str, Any]],
    size: int,
    grace: float,
    advise: Advice | None = None,
) -> None:
    """Run a verb in `size` processes and wait until all have ended.

    The first signal is passed on to all processes, which agree when to stop. A second one kills them and this process.

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
        _recorded_signals(received),
        TemporaryDirectory(prefix="trainer-") as name,
        _parent_pipe() as parent,
        socket.socket() as listening,
    ):
        folder = Path(name)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        document = {"verb": verb, "config": dict(config), "stored_overrides": list(overrides)}
        (folder / _JOB).write_text(json.dumps(document), encoding="utf-8")
        environment = {
            **os.environ,
            **_environment(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(listening.getsockname()[1]),
            LISTEN_FD: str(listening.fileno()),
            _PARENT_FD: str(parent),
            _FOLDER: str(folder),
        }
        processes: list[subprocess.Popen[bytes]] = []
        try:
            # A signal reaches a new process once that is ready for it: the mask is inherited.
            with signals_blocked():
                processes.extend(_start(rank, folder, environment, listening.fileno(), parent) for rank in range(size))
            failures = _wait(processes, folder, grace, received)
        finally:
            _kill(processes)
        run_folder = _read_note(folder, _RUN_FOLDER)
    if len(received) > 1:
        signal.signal(received[1], signal.SIG_DFL)
        signal.raise_signal(received[1])
    if failures:
        advice = advise(Path(run_folder)) if advise and run_folder and failures[0].is_death else []
        raise _error_of(failures[0], advice)


def _error_of(failure: Failure, advice: Sequence[str]) -> TrainerError:
    if failure.exit_code == Interrupted.exit_code:
        return Interrupted(*failure.messages)
    error = RankError(failure.exit_code, *failure.messages, *advice)
    if failure.details:
        error.add_note(f"In rank {failure.rank}:\n{failure.details}")
    return error


def _environment(size: int) -> dict[str, str]:
    """Return the environment of all processes; what the user has set is left as it is."""
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    defaults = {"OMP_NUM_THREADS": str(max(1, cores // size)), **_NCCL}
    if sys.platform == "linux":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # the host's name may not resolve
    unset = {name: value for name, value in defaults.items() if name not in os.environ}
    return {**unset, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}


def _start(
    rank: int, folder: Path, environment: Mapping[str, str], listening: int, parent: int
) -> subprocess.Popen[bytes]:
    """Start a process; the first one has the screen, the output of the others is kept in a file."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    package = str(Path(__file__).resolve().parent.parent)
    command = [sys.executable, "-P", "-c", _BOOTSTRAP, package, "--rank", str(folder / _JOB)]
    with (folder / f"rank-{rank}.txt").open("wb") as file:
        return subprocess.Popen(
            command,
            env={**environment, **own},
            stdin=subprocess.DEVNULL,
            stdout=None if rank == 0 else file,
            stderr=None if rank == 0 else file,
            pass_fds=(parent, listening) if rank == 0 else (parent,),
            # Ctrl-C reaches this process only, which passes it on once.
            start_new_session=True,
        )


@contextmanager
def _parent_pipe() -> Iterator[int]:
    """Yield the reading end of a pipe that closes when this process ends, however it ends."""
    reading, writing = os.pipe()
    try:
        yield reading
    finally:
        os.close(reading)
        os.close(writing)


@contextmanager
def _recorded_signals(received: list[int]) -> Iterator[None]:
    """Append the signals that arrive in the block to a list, instead of ending this process."""

    def record(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, record) for number in STOP_SIGNALS}
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
            deadline = now + (grace if _read_note(folder, _JOINED) is not None else 0.0)
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
    hint = " The system does so if memory runs out." if -code == signal.SIGKILL else ""
    message = f"rank {rank} was killed by {signal.Signals(-code).name}.{hint}"
    return Failure(rank, 128 - code, [message, *lines], is_death=True)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait()


# The processes that are watched


_is_first_report: Callable[[str], bool] | None = None


def report_once_with(is_first: Callable[[str], bool]) -> None:
    """Let the processes that are connected agree on which of them reports an error that several have.

    Args:
        is_first: Returns True for the first of the processes that call it with a text.
    """
    global _is_first_report
    _is_first_report = is_first


def is_reported_elsewhere(error: TrainerError) -> bool:
    """Return whether another process has reported the same error, or reports it in a moment."""
    if isinstance(error, ReportedError):
        if {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys():
            # torchrun and Slurm may end all processes once one has ended: the one that reports must not come last.
            time.sleep(_REPORT_SECONDS)
        return True
    digest = hashlib.blake2b(str(error).encode(), digest_size=12).hexdigest()
    try:
        return is_rank() and _is_first_report is not None and not _is_first_report(digest)
    except Exception:  # the process that keeps the reports has ended
        return False


def run_rank(path: Path, start: Callable[[str, dict[str, Any], list[Any]], None]) -> int:
    """Run this process's share of a job; return its exit code. An error is recorded for the process that watches.

    Args:
        path: The file of the job.
        start: Runs a verb, given its config and its changes of a stored config.
    """
    rank = int(os.environ["RANK"])
    _end_with_parent(int(os.environ[_PARENT_FD]))
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        start(document["verb"], document["config"], document["stored_overrides"])
    except Exception as error:
        failure = _describe(rank, error)
        _write_note(_failure_note(rank), json.dumps(asdict(failure)))
        return failure.exit_code
    return 0


def _describe(rank: int, error: Exception) -> Failure:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    user_error = next((cause for cause in causes if isinstance(cause, TrainerError)), None)
    details = traceback.format_exception(error)
    if user_error is None:
        return Failure(rank, 1, ["".join(details).rstrip()])
    is_consequence = any(isinstance(cause, LostRankError | ReportedError) for cause in causes)
    return Failure(
        rank, user_error.exit_code, list(user_error.messages), is_consequence, details="".join(details).rstrip()
    )


def _end_with_parent(pipe: int) -> None:
    """Kill this process when the one that watches it ends: nobody would pass a signal on to it."""

    def watch() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    # The thread does not run while native code holds the interpreter's lock; the kernel's signal arrives even then.
    end_with_parent_thread()
    if select.select([pipe], [], [], 0)[0]:  # that process has ended before the kernel was asked
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=watch, daemon=True, name="parent").start()


def note_joined() -> None:
    """Tell the process that watches, if there is one, that this process has joined the others."""
    _write_note(_JOINED, "")


def note_run_folder(folder: Path) -> None:
    """Tell the process that watches, if there is one, the run folder of the job."""
    _write_note(_RUN_FOLDER, str(folder))


def _failure_note(rank: int) -> str:
    return f"failure-{rank}.json"


def _write_note(name: str, text: str) -> None:
    if (folder := os.environ.get(_FOLDER)) is not None:
        (Path(folder) / name).write_text(text, encoding="utf-8")


def _read_note(folder: Path, name: str) -> str | None:
    with suppress(OSError):
        return (folder / name).read_text(encoding="utf-8")
    return None
