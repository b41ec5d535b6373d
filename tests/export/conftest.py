"""One exported folder for all tests that need one, because writing ONNX takes seconds."""

import asyncio
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.export_models import ToyModel, batches, publish_toy, toy_export_model
from trainer.export.artifacts import Artifact
from trainer.protocols import Batch


@dataclass(frozen=True)
class Published:
    """The result of `publish` for the toy model, and the global state before and after."""

    folder: Path
    artifacts: list[Artifact]
    model: ToyModel
    before: dict[str, Any]
    after: dict[str, Any]


class LoopClock:
    """The clock of the event loops of this process, which a test sets forward.

    Attributes:
        later: Seconds that it is fast.
    """

    def __init__(self) -> None:
        self.later = 0.0

    def time(self) -> float:
        return time.monotonic() + self.later


@pytest.fixture
def loop_clock(monkeypatch: pytest.MonkeyPatch) -> LoopClock:
    clock = LoopClock()
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: clock.time())
    return clock


def global_state(model: torch.nn.Module) -> dict[str, Any]:
    """Return everything that `publish` must leave unchanged."""
    return {
        "python": random.getstate(),
        "numpy": [np.asarray(part).tolist() for part in np.random.get_state()],
        "torch": torch.get_rng_state().tolist(),
        "modes": [module.training for module in model.modules()],
        "weights": {name: value.tolist() for name, value in model.state_dict().items()},
        "requires_grad": [parameter.requires_grad for parameter in model.parameters()],
        "grad": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


def drawing_batches() -> Iterator[Batch]:
    """Yield the evaluation split and draw from the global generators."""
    for batch in batches():
        random.random()
        np.random.random()
        torch.rand(())
        yield batch


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    folder = tmp_path_factory.mktemp("run") / "export"
    model = ToyModel().train()
    model.head.eval()
    before = global_state(model)
    export_model = toy_export_model(
        model,
        evaluation=drawing_batches,
        training=lambda count: drawing_batches(),
        provenance={"step": 930, "weights": "ema"},
    )
    with pytest.MonkeyPatch.context() as patch:
        # Time every shape, however slow the machine is.
        patch.setattr("trainer.export.timing.SECONDS_PER_MODEL", 60.0)
        patch.setattr("trainer.export.timing._MAX_TURNS", 2)
        artifacts = publish_toy(folder, export_model, ["onnx", "torchscript"])
    return Published(folder, artifacts, model, before, global_state(model))
