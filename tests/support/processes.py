"""Training in processes that tests may kill, forked in milliseconds by a server that has imported everything."""

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

PRELOADED = [
    "torch",
    "datasets",
    "torchmetrics.classification",
    "trainer.commands.train",
    "trainer.builders.checkpointed",
    "torch.distributed.fsdp",
    "trainer.builders.training",
    "trainer.checkpoint.store",
    "trainer.export.artifacts",
    "trainer.task.text_classification",
    "trainer.model.text_encoder",
    "tests.support.warmed",
]

PATIENCE = 300.0
"""Seconds after which a test gives up on a process, which on a machine that does much else may need minutes."""

_M_MMAP_THRESHOLD = -3
"""Parameter of glibc's `mallopt`: larger blocks get a mapping of their own (malloc.h)."""

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(PRELOADED)


def start(
    arguments: list[str], output: Path, environment: Mapping[str, str] | None = None, memory: int | None = None
) -> BaseProcess:
    """Start `trainer ARGUMENTS` in a process in this working directory; its output goes to a file or terminal.

    With `memory`, the process gets at most this many bytes of memory after its start (Linux).
    """
    variables = {"TRAINER_CACHE": os.environ["TRAINER_CACHE"], **(environment or {})}
    process = server.Process(target=run_command, args=(arguments, str(Path.cwd()), variables, str(output), memory))
    process.start()
    return process


def run_without_torch(commands: Sequence[Sequence[str]]) -> tuple[list[int], str]:
    """Run `trainer` commands in one new process, none of which may load torch; return exit codes and error output."""
    script = (
        "import json, sys; from trainer.cli import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    print(main(command)); assert 'torch' not in sys.modules, command"
    )
    line = [sys.executable, "-c", script, json.dumps(commands)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stderr
    return [int(code) for code in done.stdout.split()], done.stderr


def wait_until(ready: Callable[[], bool], process: BaseProcess) -> None:
    """Return if `ready()` is true or the process has ended."""
    while process.is_alive() and not ready():
        time.sleep(0.002)


def run_command(
    arguments: list[str], folder: str, variables: dict[str, str], output: str, memory: int | None = None
) -> None:
    """Run `trainer ARGUMENTS` in this process and end it."""
    if memory is not None:
        # Large blocks are given back as soon as they are freed, so that the limit counts what is in use.
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        limit = memory + 1024 * int(status.partition("VmData:")[2].split()[0])
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    os.chdir(folder)
    os.environ.update(variables)
    # The server has made itself the default way to start processes, such as a loader's workers.
    multiprocessing.set_start_method("fork", force=True)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if os.isatty(log):  # the server's streams are those of a file
        sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    # The server ignores it; a shell's child would not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from trainer.cli import main
    from trainer.distributed import ranks
    from trainer.export import timing

    timing.SECONDS_PER_MODEL = 0.0
    ranks._REPORT_SECONDS = float(os.environ.get("REPORT_SECONDS", ranks._REPORT_SECONDS))
    sys.exit(main(arguments))
