"""The teacher of a distillation, out of a run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainer.builders.instantiate import make
from trainer.builders.models import make_model
from trainer.checkpoint.store import Store
from trainer.config.stored import job_from_text
from trainer.errors import CheckpointError, ConfigError, format_error
from trainer.protocols import Task
from trainer.resume import chosen_weights, load_weights
from trainer.targets import scored

_CHECKPOINTS = "checkpoints"


DOCUMENT = "teacher.json"
"""The document of a checkpoint that says which weights taught."""


@dataclass(frozen=True)
class Teacher:
    """Inputs to the outputs of another run's model, in evaluation mode.

    Attributes:
        model: The model.
        identity: Which weights they are: the step and a checksum.
    """

    model: Callable[..., Tensor]
    identity: dict[str, Any]

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.model(**inputs)

    def document(self) -> str:
        return json.dumps(self.identity) + "\n"


def load_teacher(path: Any, task: Task, device: torch.device, trust: list[str]) -> Teacher:
    """The best checkpoint of a run as a teacher.

    Args:
        path: Its run folder.
        task: The student's, fitted: both must read the same tokens and know the same labels.
        device: Where it runs.
        trust: Packages that its stored config may name.

    Raises:
        ConfigError: There is no such run, or it was trained for something else.
    """
    if not isinstance(path, str):
        raise ConfigError(format_error("loss.teacher", "must be a run folder", value=path))
    try:
        snapshot = Store(Path(path) / _CHECKPOINTS, keep=2).load("best")
    except CheckpointError as error:
        raise ConfigError(
            format_error("loss.teacher", "has no checkpoint that can be used", str(error), value=path)
        ) from error
    job = job_from_text(snapshot.documents["config.yaml"], trust)
    learnt, known = json.loads(snapshot.documents["task.json"]), json.loads(json.dumps(task.state_dict()))
    if other := [name for name in known if known[name] != learnt.get(name)]:
        remedy = "Train both on the same data with the same task"
        problem = f"was trained with different {' and '.join(other)}"
        raise ConfigError(format_error("loss.teacher", problem, remedy, value=path))
    _, tensors, loss_tensors = chosen_weights(snapshot, "auto")
    # Whoever teaches, the student starts from the same weights.
    with torch.random.fork_rng(devices=[]):
        loss = None if loss_tensors is None else make("loss", job.loss, **task.facts())
        model = make_model(job, task, snapshot, num_outputs=getattr(loss, "in_features", None))
    load_weights(model, tensors)
    if loss is not None and loss_tensors is not None:
        load_weights(loss, loss_tensors)
        model = scored(model, loss)
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().view(torch.uint8).numpy() if tensor.ndim else tensor.numpy().tobytes())
    identity = {"step": snapshot.step, "sha256": digest.hexdigest()}
    return Teacher(model.to(device).eval().requires_grad_(False), identity)
