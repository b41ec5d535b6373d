"""The device of a process."""

import pytest
import torch

from trainer.builders.device import build_device
from trainer.errors import ConfigError


def test_a_missing_device_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"device: is not available on this machine, got 'cuda:99'.*device=cpu"):
        build_device("cuda:99")
    assert (build_device("auto").type == "cuda") == torch.cuda.is_available()


def test_each_of_several_processes_needs_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("cuda:0", "mps"):
        with pytest.raises(ConfigError, match=f"device: names a single device.*3 processes.*'{name}'"):
            build_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"devices: this machine has 2 CUDA devices.*got 3"):
        build_device("auto")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert build_device("cuda") == torch.device("cuda", 1)
