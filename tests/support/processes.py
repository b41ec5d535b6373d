"""Training in processes that tests may kill, forked in milliseconds by a server that has imported everything."""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
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
]

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(PRELOADED)


def start(arguments: list[str], output: Path, environment: Mapping[str, str] | None = None) -> BaseProcess:
    """Start `trainer ARGUMENTS` in a process in this working directory; its output goes to the file `output`."""
    variables = {"TRAINER_CACHE": os.environ["TRAINER_CACHE"], **(environment or {})}
    process = server.Process(target=run_command, args=(arguments, str(Path.cwd()), variables, str(output)))
    process.start()
    return process


def wait_until(ready: Callable[[], bool], process: BaseProcess) -> None:
    """Return if `ready()` is true or the process has ended."""
    while process.is_alive() and not ready():
        time.sleep(0.002)


def run_command(arguments: list[str], folder: str, variables: dict[str, str], output: str) -> None:
    """Run `trainer ARGUMENTS` in this process and end it."""
    os.chdir(folder)
    os.environ.update(variables)
    log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # The server ignores it; a shell's child would not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from trainer.cli import main

    sys.exit(main(arguments))
