"""Start a process for each device of a job on this machine, pass signals on to them, and end them together.

This process only watches: it imports no torch and has no share of the work. `torchrun` and Slurm start the processes
themselves; each of them is told its rank by the environment.
"""

from __future__ import annotations

import json
import os
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

from trainer.errors import ConfigError, LostRankError, TrainerError, format_error
from trainer.signals import STOP_SIGNALS

LISTEN_FD: Final = "TRAINER_LISTEN_FD"
"""Environment variable with the open socket on which the first process listens: no other process can take its port."""

_PARENT_FD: Final = "TRAINER_PARENT_FD"
"""Environment variable with the end of a pipe that is closed when the process that watches has ended."""

_POLL_SECONDS: Final = 0.02
_LAST_LINES: Final = 20


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
        exit_code: Its exit code.
        messages: What the user should read.
        is_consequence: It failed because another process had ended.
    """

    rank: int
    exit_code: int
    messages: list[str]
    is_consequence: bool = False


def num_processes(devices: int | str) -> int:
    """Return the number of processes of a job: those that torchrun or Slurm have started, else one for each device.

    Raises:
        ConfigError: The processes that were started are not as many as `devices`.
    """
    if not is_rank():
        return count_gpus() if devices == "auto" else int(devices)
    size = int(os.environ.get("WORLD_SIZE", 1))
    if devices not in ("auto", 1, size):
        problem = f"{size} processes have been started"
        raise ConfigError(format_error("devices", problem, "Leave it out, or set it to this number", value=devices))
    return size


def is_rank() -> bool:
    """Return whether this process is one of several that train together."""
    return "RANK" in os.environ


def count_gpus() -> int:
    """Return the number of visible NVIDIA GPUs, found without torch; 1 if there is none."""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return max(1, len([name for name in visible.split(",") if name.strip()]))
    return max(1, len(list(Path("/proc/driver/nvidia/gpus").glob("*"))))


def launch(verb: str, config: Mapping[str, Any], overrides: Sequence[tuple[str, Any]], size: int, grace: float) -> None:
    """Run a verb in `size` processes and wait until all have ended.

    Args:
        verb: The verb.
        config: The config of its job.
        overrides: The changes of a stored config that the job has.
        size: The number of processes.
        grace: Seconds that the other processes have to end after one has failed; then they are killed.

    Raises:
        RankError: A process failed: the one that failed first, not those that failed because of it.
    """
    with TemporaryDirectory(prefix="trainer-") as name, _parent_pipe() as parent, socket.socket() as listening:
        folder = Path(name)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        document = {"verb": verb, "config": dict(config), "stored_overrides": list(overrides)}
        (folder / "job.json").write_text(json.dumps(document), encoding="utf-8")
        environment = (
            os.environ
            | _environment(size)
            | {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(listening.getsockname()[1]),
                LISTEN_FD: str(listening.fileno()),
                _PARENT_FD: str(parent),
            }
        )
        processes = [_start(rank, folder, environment, listening.fileno(), parent) for rank in range(size)]
        try:
            with _forward_signals(processes):
                failures = _wait(processes, folder, grace)
        finally:
            _kill(processes)
    if failures:
        raise RankError(failures[0].exit_code, *failures[0].messages)


def _environment(size: int) -> dict[str, str]:
    """Return the environment of all processes; what the user has set is left as it is."""
    defaults = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // size)),
        # Reductions inside a switch may sum in another order from run to run.
        "NCCL_NVLS_ENABLE": "0",
        "NCCL_COLLNET_ENABLE": "0",
    }
    if sys.platform == "linux":
        defaults["GLOO_SOCKET_IFNAME"] = "lo"  # the host's name may not resolve
    unset = {name: value for name, value in defaults.items() if name not in os.environ}
    return {**unset, "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}


def _start(
    rank: int, folder: Path, environment: Mapping[str, str], listening: int, parent: int
) -> subprocess.Popen[bytes]:
    """Start a process; the first one has the screen, the output of the others is kept in a file."""
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    command = [sys.executable, "-m", "trainer", "--rank", str(folder / "job.json")]
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
def _forward_signals(processes: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    def forward(number: int, _: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {number: signal.signal(number, forward) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(processes: Sequence[subprocess.Popen[bytes]], folder: Path, grace: float) -> list[Failure]:
    """Wait for all processes; return the failures, the one that caused the others first."""
    failed: list[int] = []
    deadline = float("inf")
    killed: set[int] = set()
    while True:
        running = [rank for rank, process in enumerate(processes) if process.poll() is None]
        failed += [
            rank for rank, process in enumerate(processes) if rank not in failed and process.returncode not in (None, 0)
        ]
        if not running:
            break
        now = time.monotonic()
        if failed and deadline == float("inf"):
            deadline = now + grace
        if now > deadline:
            killed.update(running)
            for rank in running:
                processes[rank].kill()
        time.sleep(_POLL_SECONDS)
    failures = [_read_failure(rank, processes[rank].returncode, folder) for rank in failed if rank not in killed]
    return sorted(failures, key=lambda failure: failure.is_consequence)


def _read_failure(rank: int, code: int, folder: Path) -> Failure:
    """Return the failure that a process has recorded, or what can be known of one that was killed."""
    with suppress(OSError, ValueError, TypeError):
        return Failure(**json.loads((folder / f"failure-{rank}.json").read_text(encoding="utf-8")))
    lines = (folder / f"rank-{rank}.txt").read_text(encoding="utf-8", errors="replace").splitlines()[-_LAST_LINES:]
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    messages = [f"process {rank} of the run {end}.", *lines]
    return Failure(rank, 128 - code if code < 0 else code, messages)


def _kill(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


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
        (path.parent / f"failure-{rank}.json").write_text(json.dumps(asdict(failure)), encoding="utf-8")
        return failure.exit_code
    return 0


def _describe(rank: int, error: Exception) -> Failure:
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and isinstance(cause, Exception):
        causes.append(cause)
    user_error = next((cause for cause in causes if isinstance(cause, TrainerError)), None)
    lost = any(isinstance(cause, LostRankError) for cause in causes)
    if user_error is not None:
        return Failure(rank, user_error.exit_code, list(user_error.messages), lost)
    return Failure(rank, 1, traceback.format_exception(error), lost)


def _end_with_parent(pipe: int) -> None:
    """Kill this process when the one that watches it ends: nobody would pass a signal on to it."""

    def watch() -> None:
        os.read(pipe, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent").start()
