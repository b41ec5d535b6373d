"""The device of a process, and what makes its results repeat: seeds and deterministic operations."""

from __future__ import annotations

import os
import random

import numpy as np
import torch

from trainer.display import counted
from trainer.errors import ConfigError, format_error


def build_device(name: str) -> torch.device:
    """Return the device of a name; `auto` takes CUDA, else MPS, else the CPU. Each of several processes has its own.

    Raises:
        ConfigError: This machine has no such device, or fewer than processes.
    """
    size, local = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), int(os.environ.get("LOCAL_RANK", 0))
    if name == "auto":
        # MPS is a single device, and its tensors cannot be exchanged.
        has_mps = size == 1 and torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    device, count = torch.device(name), torch.cuda.device_count()
    if size > 1 and (device.type == "mps" or device.index is not None):
        problem = f"names a single device, but this machine has {size} processes of the run"
        raise ConfigError(format_error("device", problem, "Set device=cuda or device=cpu", value=name))
    if device.type == "cuda" and torch.cuda.is_available() and size > count:
        # All processes report the same, so that it is printed once.
        problem = f"this machine has {counted(count, 'CUDA device')}, and each process needs its own"
        remedy = f"Use at most {count}, or a machine with more, or set device=cpu"
        raise ConfigError(format_error("devices", problem, remedy, value=size))
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        # Slurm may show each of its tasks one GPU of its own.
        device = torch.device("cuda", 0 if count == 1 and "SLURM_PROCID" in os.environ else local)
    present = {
        "cuda": torch.cuda.is_available() and (device.index or 0) < count,
        "mps": torch.backends.mps.is_available(),
    }
    if not present.get(device.type, True):
        remedy = f"PyTorch finds {counted(count, 'CUDA device')}. Set device=cpu or device=auto"
        raise ConfigError(format_error("device", "is not available on this machine", remedy, value=name))
    return device


def name_of(device: torch.device) -> str:
    """Return the name of a GPU, or the type of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def seed_rng(seed: int) -> None:
    """Seed every global random number generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def set_determinism(deterministic: bool, device: torch.device) -> None:
    """Allow only operations that give the same bits every time, or any; the CPU's operations always do.

    PyTorch reports an operation without a deterministic implementation when it is run. A mode that only warns would
    also select the attention whose backward pass is not deterministic.
    """
    if device.type == "cuda":
        if deterministic:  # read when cuBLAS is first used
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic, warn_only=False)
        torch.backends.cudnn.benchmark = not deterministic
