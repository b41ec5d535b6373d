"""All that a run is made of, to a checkpoint and back: weights, averages, optimizer, scaler, generators, position."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from torch import Tensor, nn

from trainer.checkpoint.optimizer_state import capture_optimizer, restore_optimizer
from trainer.checkpoint.rng_state import capture_rng_state, restore_rng_state
from trainer.checkpoint.store import Snapshot
from trainer.errors import CheckpointError, format_error
from trainer.layout import STATE
from trainer.loop import MetricSchedule, Run
from trainer.state import TrainState

MASKS = "masks"
"""The file of a checkpoint that says which elements of the weights stay, where some are pruned."""


def capture(run: Run, state: TrainState, *, documents: Mapping[str, str], data: str) -> Snapshot:
    """The run between two steps, its tensors still shared with it.

    Args:
        run: The parts.
        state: The position and scores.
        documents: Further text files, by name: the config, the task's state.
        data: The fingerprint of the encoded data.
    """
    optimizer_tensors, optimizer_scalars = capture_optimizer(run.optimizer)
    tensors: dict[str, Mapping[str, Tensor]] = {"model": run.model.state_dict(), "optimizer": optimizer_tensors}
    tensors |= {name: module.state_dict() for name, module in _further(run).items()}
    if masks := run.masks.state_dict():
        tensors[MASKS] = masks
    train = state.state_dict()
    document = {
        "score": train["score"],
        "train": train,
        "ema": None if run.ema is None else run.ema.state_dict(),
        "schedule": run.schedule.state_dict() if isinstance(run.schedule, MetricSchedule) else None,
        "precision": run.precision.state_dict(),
        "optimizer": optimizer_scalars,
        "generators": capture_rng_state(),
        "data": data,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}},
    }
    return Snapshot(state.step, tensors, {STATE: json.dumps(document, indent=1) + "\n", **documents})


def restore(run: Run, state: TrainState, snapshot: Snapshot, *, data: str) -> None:
    """Puts the run where `snapshot` was taken; what follows has the same bits as if it had never stopped.

    Raises:
        CheckpointError: The checkpoint is of another model, optimizer or data.
    """
    document = json.loads(snapshot.documents[STATE])
    if document["data"] != data:
        raise CheckpointError(
            format_error(
                "data", "the data has changed since the checkpoint was taken", "Bring it back, or start a new run"
            )
        )
    load_weights(run.model, snapshot.tensors["model"])
    for name, module in _further(run).items():
        load_weights(module, snapshot.tensors[name])
    if run.ema is not None:
        run.ema.load_state_dict(document["ema"])
    if isinstance(run.schedule, MetricSchedule):
        run.schedule.load_state_dict(document["schedule"])
    restore_optimizer(run.optimizer, snapshot.tensors["optimizer"], document["optimizer"])
    run.precision.load_state_dict(document["precision"])
    state.load_state_dict(document["train"])
    # Last: building and loading may have drawn.
    restore_rng_state(document["generators"])


def _further(run: Run) -> dict[str, nn.Module]:
    """The modules of a run beside the model whose weights a checkpoint holds, by the names of their files."""
    modules: dict[str, nn.Module] = {}
    if isinstance(run.loss, nn.Module) and run.loss.state_dict():
        modules["loss"] = run.loss
    if run.ema is not None:
        modules["ema"] = run.ema.module
        if isinstance(run.ema.loss, nn.Module) and run.ema.loss is not run.loss:
            modules["ema_loss"] = run.ema.loss
    return modules


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads weights that must fit exactly.

    Raises:
        CheckpointError: A name or a shape differs; the first of each kind are named.
    """
    try:
        module.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"the checkpoint's weights do not fit the model: {error}") from error


def select_weights(snapshot: Snapshot, weights: str) -> tuple[str, Mapping[str, Tensor], Mapping[str, Tensor] | None]:
    """The weights in a checkpoint: `raw`, `ema`, or with `auto` those that scored better there.

    Returns:
        Which they are, the model's tensors, and the loss's where it has some.

    Raises:
        CheckpointError: It holds no averaged weights.
    """
    score: dict[str, Any] | None = json.loads(snapshot.documents[STATE])["score"]
    if weights == "auto":
        weights = score["weights"] if score else "raw"
    if weights == "ema" and "ema" not in snapshot.tensors:
        raise CheckpointError(
            format_error("weights", "the run kept no averaged weights", "Use weights=raw", value="ema")
        )
    averaged = weights == "ema"
    loss = snapshot.tensors.get("loss")
    if averaged:
        loss = snapshot.tensors.get("ema_loss", loss)
    return weights, snapshot.tensors["ema" if averaged else "model"], loss
