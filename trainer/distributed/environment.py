"""The place of this process among the processes of a job, as the environment describes it.

`trainer.distributed.launch`, torchrun and Slurm set the environment. Every command starts with this module: it imports
little.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from trainer.display import counted
from trainer.errors import ConfigError, ReportedError, TrainerError, format_error

LISTEN_FD: Final = "TRAINER_LISTEN_FD"
"""Environment variable with the open socket on which the first process listens: no other process can take its port."""

LAUNCH_FOLDER: Final = "TRAINER_LAUNCH_DIR"
"""Environment variable with the folder in which the processes leave notes for the process that watches."""

JOINED: Final = "joined"
RUN_FOLDER: Final = "run-folder"
"""Names of notes."""

_REPORT_SECONDS: Final = 5.0


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
        problem = f"{counted(size, 'process', 'has')} been started for the run"
        with reported_once_per_machine():
            raise ConfigError(format_error("devices", problem, "Leave it out, or set it to this number", value=devices))
    return size


def is_rank() -> bool:
    """Return whether this process is one of several that train together."""
    return "RANK" in os.environ


def is_watched() -> bool:
    """Return whether `launch` has started this process, and watches it."""
    return LAUNCH_FOLDER in os.environ


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


_GPUS: Final = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")
"""Device files that GPU drivers create: for NVIDIA, Jetson boards, WSL, and AMD."""


def require_cuda_driver(device: object) -> None:
    """Raise ConfigError if a device is a GPU and this machine has no driver of one: known before torch is loaded.

    torch may find the library of a driver in a folder of its own, so a machine with a GPU in `/dev` is left to it.
    """
    if not str(device).startswith("cuda") or sys.platform != "linux" or any(map(os.path.exists, _GPUS)):
        return
    import ctypes  # here, because every command starts with this module

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        remedy = "It has no driver for GPUs of NVIDIA. Set device=cpu or device=auto"
        raise ConfigError(format_error("device", "is not available on this machine", remedy, value=device)) from None


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
        os.environ.update({name: value for name, value in NCCL.items() if name not in os.environ})


NCCL: Final = {
    # Reductions inside a switch may sum in another order from run to run.
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_COLLNET_ENABLE": "0",
}


# Errors that several processes have


_is_first_report: Callable[[str | None], bool] | None = None


def report_once_with(is_first: Callable[[str | None], bool]) -> None:
    """Let the processes that are connected agree on which of them reports an error that several have.

    Args:
        is_first: Returns True for the first of the processes that call it with a text; called with None by a process
            whose error another one reports. It may wait until all have called it.
    """
    global _is_first_report
    _is_first_report = is_first


def is_reported_elsewhere(error: TrainerError) -> bool:
    """Return whether another process has reported the same error, or reports it in a moment."""
    if isinstance(error, ReportedError):
        _ask_for_report(None)
        if {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys():
            # torchrun and Slurm may end all processes once one has ended: the one that reports must not come last.
            time.sleep(_REPORT_SECONDS)
        return True
    if not is_rank():
        return False
    import hashlib  # here, because every command starts with this module

    digest = hashlib.blake2b(str(error).encode(), digest_size=12).hexdigest()
    return not _ask_for_report(digest)


def _ask_for_report(text: str | None) -> bool:
    """Return whether this process is the first one that reports a text; None reports nothing."""
    try:
        return _is_first_report is None or _is_first_report(text)
    except Exception:  # the process that keeps the reports has ended
        return True


# Notes for the process that watches


def note_joined() -> None:
    """Tell the process that watches, if there is one, that this process has joined the others."""
    write_note(JOINED, "")


def note_run_folder(folder: Path) -> None:
    """Tell the process that watches, if there is one, the run folder of the job."""
    write_note(RUN_FOLDER, str(folder))


def write_note(name: str, text: str) -> None:
    if (folder := os.environ.get(LAUNCH_FOLDER)) is not None:
        (Path(folder) / name).write_text(text, encoding="utf-8")
