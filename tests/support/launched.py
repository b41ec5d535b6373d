"""`trainer ... devices=N` with its own launcher, in processes that start in milliseconds and that tests may kill.

The process that watches is forked from a server that has imported everything. It forks each process of the run instead
of starting a new interpreter. All else is the launcher's own: environment, pipes, signals, sessions.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO
from unittest.mock import patch

from tests.support.processes import run_command, server


def start_launched(arguments: list[str], output: Path, **variables: str) -> BaseProcess:
    """Start `trainer ARGUMENTS` with several devices; its output goes to the file `output`."""
    variables["TRAINER_CACHE"] = os.environ["TRAINER_CACHE"]
    process = server.Process(target=_watch, args=(arguments, str(Path.cwd()), variables, str(output)))
    process.start()
    return process


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid and fields[0] != "Z":
            found.append(int(file.parent.name))
    return found


def descendants(pid: int) -> list[int]:
    """Return the processes that a process has started and that still run, and all that they have started."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def ranks_of(pid: int) -> list[int]:
    """Return the processes of a run by rank, given the process that watches them."""
    ranks = {}
    for child in children(pid):
        name = Path(f"/proc/{child}/comm").read_text().strip()
        if name.startswith("rank-"):
            ranks[int(name.removeprefix("rank-"))] = child
    return [ranks[rank] for rank in sorted(ranks)]


def is_running(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _watch(arguments: list[str], folder: str, variables: dict[str, str], output: str) -> None:
    with patch("trainer.distributed.launch.subprocess.Popen", _Forked):
        run_command(arguments, folder, variables, output)


class _Forked(subprocess.Popen[bytes]):
    """A process that is forked instead of executed; open files and signal mask become what `exec` would make them."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        stdin: int,
        stdout: IO[bytes] | None,
        stderr: IO[bytes] | None,
        pass_fds: Sequence[int],
        start_new_session: bool,
    ) -> None:
        self.args = command
        self.stdin = self.stdout = self.stderr = None
        self.returncode = None
        self._child_created = True
        self._waitpid_lock = threading.Lock()
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.setsid()
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if stdout is not None:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stdout.fileno(), 2)
            for name in os.listdir("/proc/self/fd"):
                number = int(name)
                if number > 2 and number not in (*pass_fds, resource_tracker.getfd()):
                    with suppress(OSError):  # the folder that was listed
                        os.close(number)
            os.environ.clear()
            os.environ.update(env)
            Path("/proc/self/comm").write_text(f"rank-{env['RANK']}")
            from trainer.cli import main

            code = main(list(command[command.index("--rank") :]))
            sys.stdout.flush()
        finally:
            os._exit(code)
