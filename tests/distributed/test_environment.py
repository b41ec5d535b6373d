import ctypes
from pathlib import Path

import pytest

from trainer.distributed import environment
from trainer.errors import ConfigError


def test_a_machine_with_a_gpu_is_left_to_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The loader of Python does not know the folders in which torch finds the library of a driver."""

    def no_library(name: str) -> None:
        raise OSError(f"{name}: no such file")

    monkeypatch.setattr(ctypes, "CDLL", no_library)
    monkeypatch.setattr(environment, "_GPUS", (str(tmp_path / "none"),))
    with pytest.raises(ConfigError, match=r"device: is not available on this machine, got 'cuda:1'\. It has no driver"):
        environment.require_cuda_driver("cuda:1")
    environment.require_cuda_driver("auto")
    monkeypatch.setattr(environment, "_GPUS", (str(tmp_path / "none"), str(tmp_path)))
    environment.require_cuda_driver("cuda:1")
