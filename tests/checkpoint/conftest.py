"""Small checkpoints whose contents are a function of their step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.documents import state_text
from trainer.checkpoint.snapshot import Snapshot

MakeSnapshot = Callable[..., Snapshot]


def make(step: int, score: float | None = None, *, higher: bool = True, name: str = "accuracy") -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    weights = {
        "linear.weight": torch.randn(7, 5, generator=generator),
        "linear.bias": torch.randn(5, generator=generator).to(torch.bfloat16),
        "steps": torch.tensor(step),
    }
    moments = {f"{key}/exp_avg": torch.randn(7, 5, generator=generator) for key in ("a", "b")}
    scored = None if score is None else {"name": name, "value": score, "higher_is_better": higher, "weights": "raw"}
    documents = {"state.json": state_text(step, scored), "config.yaml": f"seed: {step}\nname: Übung\n"}
    return Snapshot(step, {"model": weights, "ema": dict(weights), "optimizer": moments}, documents)


def same(loaded: Snapshot, expected: Snapshot) -> bool:
    def bits(snapshot: Snapshot) -> dict[str, Any]:
        return {
            f"{file}/{name}": (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).tolist())
            for file, tensors in snapshot.tensors.items()
            for name, tensor in tensors.items()
        }

    documents = dict(loaded.documents) == dict(expected.documents)
    return loaded.step == expected.step and documents and bits(loaded) == bits(expected)


@pytest.fixture(name="make")
def _make() -> MakeSnapshot:
    return make


@pytest.fixture(name="same")
def _same() -> Callable[[Snapshot, Snapshot], bool]:
    return same


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"
