"""Several processes that train together, started as torchrun starts them, but forked from a server in milliseconds."""

from __future__ import annotations

import os
import pickle
import socket
from collections.abc import Callable, Mapping
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tests.support.processes import PATIENCE, server, start
from trainer.distributed.ranks import Ranks


def free_port() -> int:
    """Return a port of this machine that is free at the moment."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def start_ranks(
    arguments: list[str], size: int, folder: Path, memory: int | None = None, **variables: str
) -> list[BaseProcess]:
    """Start `trainer ARGUMENTS` in `size` processes that form a group, each with its output in `folder/rank-N.txt`."""
    folder.mkdir(parents=True, exist_ok=True)
    port = str(free_port())
    return [
        start(arguments, folder / f"rank-{rank}.txt", {**_environment(rank, size, port), **variables}, memory)
        for rank in range(size)
    ]


def run_ranks(
    arguments: list[str],
    size: int,
    folder: Path,
    timeout: float = PATIENCE,
    memory: int | None = None,
    *,
    all_fail: bool = False,
) -> list[int | None]:
    """Run `trainer ARGUMENTS` in `size` processes and return their exit codes; None for one that has not ended.

    With `memory`, each process gets at most this many bytes of memory after its start (Linux). With `all_fail`, a
    process that fails waits for the others to fail, however long a slow machine takes to get them there.
    """
    variables = {"REPORT_SECONDS": str(PATIENCE)} if all_fail else {}
    processes = start_ranks(arguments, size, folder, memory, **variables)
    for process in processes:
        process.join(timeout)
    codes = [process.exitcode for process in processes]
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return codes


def _environment(rank: int, size: int, port: str) -> Mapping[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "GLOO_SOCKET_IFNAME": "lo" if os.uname().sysname == "Linux" else "lo0",
    }


def call_ranks(function: Callable[[Ranks], Any], size: int, folder: Path, timeout: float = PATIENCE) -> list[Any]:
    """Return what a function of a module returns in each of `size` processes that form a group, by rank."""
    processes = [server.Process(target=_call, args=(function, rank, size, str(folder))) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in processes] == [0] * size
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(size)]


def _call(function: Callable[[Ranks], Any], rank: int, size: int, folder: str) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = _environment(rank, size, "")["GLOO_SOCKET_IFNAME"]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{size}", rank=rank, world_size=size)
    result = function(Ranks(rank, size))
    Path(folder, f"result-{rank}").write_bytes(pickle.dumps(result))
    dist.barrier()  # nobody leaves while another still connects
    dist.destroy_process_group()
