"""The teacher of a distillation, out of a run folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.build.models import make_model
from trainer.checkpoint.store import Store
from trainer.config.stored import job_from_text
from trainer.errors import CheckpointError, ConfigError, explain
from trainer.protocols import Task
from trainer.resume import chosen_weights, load_weights

_CHECKPOINTS = "checkpoints"


def load_teacher(
    path: Any, task: Task, device: torch.device, trust: list[str]
) -> Callable[[Mapping[str, Tensor]], Tensor]:
    """Inputs to the outputs of the best checkpoint of a run, without gradients, in evaluation mode.

    Args:
        path: Its run folder.
        task: The student's, fitted: both must read the same tokens and know the same labels.
        device: Where it runs.
        trust: Packages that its stored config may name.

    Raises:
        ConfigError: There is no such run, or it was trained for something else.
    """
    if not isinstance(path, str):
        raise ConfigError(explain("loss.teacher", "must be a run folder", value=path))
    try:
        snapshot = Store(Path(path) / _CHECKPOINTS, keep=2).load("best")
    except CheckpointError as error:
        raise ConfigError(
            explain("loss.teacher", "has no checkpoint that can be used", str(error), value=path)
        ) from error
    job = job_from_text(snapshot.documents["config.yaml"], trust)
    learnt, known = json.loads(snapshot.documents["task.json"]), json.loads(json.dumps(task.state_dict()))
    other = [name for name in known if name != "class_counts" and known[name] != learnt.get(name)]
    if other:
        remedy = "Train both on the same data with the same task"
        problem = f"was trained with another {' and another '.join(other)}"
        raise ConfigError(explain("loss.teacher", problem, remedy, value=path))
    # Whoever teaches, the student starts from the same weights.
    with torch.random.fork_rng(devices=[]):
        model = make_model(job, task, snapshot)
    load_weights(model, chosen_weights(snapshot, "auto")[1])
    model = model.to(device).eval().requires_grad_(False)

    def teach(inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            output: Tensor = model(**inputs)
        return output

    return teach
