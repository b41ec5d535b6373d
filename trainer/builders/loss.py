"""The loss of a job and, for distillation, the teacher model that it learns from."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainer.builders.instantiate import instantiate, locate, parameters
from trainer.builders.model import restore_model
from trainer.builders.perturb import compares_outputs
from trainer.builders.stored_sizes import bounded_build
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.store import Store
from trainer.config.compatibility import incompatible_targets
from trainer.config.jobs import TrainJob
from trainer.config.stored import TRAINING_KEYS, job_from_text
from trainer.deferred_logits import DeferredLogits, deferral
from trainer.ema import has_weights
from trainer.errors import CheckpointError, ConfigError, format_error
from trainer.layout import CHECKPOINTS, CONFIG, TASK, Document
from trainer.model.modes import evaluation_mode
from trainer.protocols import (
    DeclaresTargets,
    DefersLogits,
    HasTrainTarget,
    IgnoresTargets,
    LanguageModelTask,
    Loss,
    SumsOverRows,
    Task,
)
from trainer.targets import with_loss_head

logger = logging.getLogger(__name__)

_MAX_LOGGED = 20
_EXAMPLE_SIZE = 8
TEACHER = "teacher.json"
"""The document of a checkpoint that identifies the teacher's weights."""


def build_loss(job: TrainJob, task: Task, device: torch.device, snapshot: Snapshot | None = None) -> Loss:
    """Build the loss with its buffers and parameters on the device.

    Args:
        job: The checked config.
        task: The fitted task.
        device: The device.
        snapshot: The checkpoint whose weights will be loaded into the loss; None for a new run.

    Raises:
        ConfigError: The loss does not fit the task, or its teacher cannot be used.
    """
    arguments = task.info().arguments()
    if needs_teacher(job):
        arguments["teacher_model"] = load_teacher(job.loss.get("teacher"), task, device, job.trust)
    with bounded_build("loss", snapshot, {"loss": job.loss}):
        loss: Loss = instantiate("loss", job.loss, **arguments)
    _check_ignore_index(loss, task)
    _log_weights(job, task)
    for target in (task.target, task.train_target if isinstance(task, HasTrainTarget) else task.target):
        if isinstance(loss, DeclaresTargets) and target not in loss.targets:
            raise ConfigError(
                format_error("loss", incompatible_targets(loss.targets, target), value=job.loss["_target_"])
            )
    return loss.to(device) if isinstance(loss, nn.Module) else loss


def _log_weights(job: TrainJob, task: Task) -> None:
    """Log which class has which weight if they are given in the order of the classes."""
    names = task.info().class_names or []
    for key in ("weight", "alpha", "pos_weight"):
        weights = job.loss.get(key)
        if isinstance(weights, list) and len(weights) == len(names) <= _MAX_LOGGED:
            pairs = ", ".join(f"{name} {weight:g}" for name, weight in zip(names, weights, strict=True))
            logger.info("loss.%s: %s", key, pairs)


def needs_teacher(job: TrainJob) -> bool:
    """Return whether the loss learns from another run's model."""
    return "teacher_model" in parameters(locate("loss", job.loss))


def _check_ignore_index(loss: object, task: Task) -> None:
    """Raise ConfigError if `loss.ignore_index` is one of the task's classes."""
    if not isinstance(loss, IgnoresTargets):
        return
    classes = {"class": range(task.info().num_outputs or 0), "multi_hot": range(2)}.get(task.target, range(0))
    if loss.ignore_index in classes:
        problem = f"collides with a real class, 0 to {classes[-1]}"
        raise ConfigError(format_error("loss.ignore_index", problem, "Use a negative number", value=loss.ignore_index))


def can_defer_logits(job: TrainJob, task: Task, model: nn.Module, loss: Loss) -> bool:
    """Return whether a language model leaves its last layer to the loss: `train.fused_head`, and both can do so."""
    if not job.train.fused_head or not isinstance(task, LanguageModelTask):
        return False
    if compares_outputs(job):
        obstacle = "perturb compares logits"
    elif job.model.get("head_dropout"):
        obstacle = "model.head_dropout needs the head"
    elif job.shard:
        obstacle = "the weights are stored in shards"
    elif not (isinstance(loss, SumsOverRows) and loss.sums_over_rows) or has_weights(loss):
        obstacle = f"{type(loss).__qualname__} does not declare that it sums over rows"
    elif not _ends_with_linear_layer(model, task):
        obstacle = f"{type(model).__qualname__} does not end with a plain linear layer"
    else:
        return True
    logger.debug("train.fused_head: the logits of a batch are computed at once, because %s", obstacle)
    return False


def _example_inputs(task: Task, model: nn.Module) -> dict[str, Tensor]:
    """Return inputs of two small samples on the device of a model."""
    device = next(model.parameters()).device
    sizes = {axis: max(low, min(_EXAMPLE_SIZE, high)) for axis, (low, high) in task.axis_limits().items()}
    example = task.example({"batch": 2, **sizes}, np.random.default_rng(0))
    return {name: tensor.to(device) for name, tensor in example.items()}


@torch.no_grad()
def _ends_with_linear_layer(model: nn.Module, task: Task) -> bool:
    """Return whether deferred logits are the model's own logits, on a small example."""
    if not isinstance(model, DefersLogits) or model.output_layer() is None:
        return False
    inputs = _example_inputs(task, model)
    with evaluation_mode(model):
        own = model(**inputs)
        with deferral(model, deferred=True):
            output = model(**inputs)
    return isinstance(output, DeferredLogits) and torch.allclose(output.compute(), own, rtol=1e-3, atol=1e-3)


@dataclass(frozen=True)
class Teacher:
    """Another run's model in evaluation mode, called with the student's inputs.

    Attributes:
        model: The model; its output is what metrics see.
        identity: The step and a checksum of its weights.
    """

    model: Callable[..., Tensor]
    identity: Document

    def __call__(self, inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return self.model(**inputs)

    def document(self) -> str:
        """Return the identity as the text that checkpoints carry."""
        return json.dumps(self.identity) + "\n"


def load_teacher(path: object, task: Task, device: torch.device, trust: list[str]) -> Teacher:
    """Load the best checkpoint of a run as a teacher.

    Args:
        path: The teacher's run folder.
        task: The student's fitted task: both must have the same tokenizer and labels.
        device: The device of the teacher.
        trust: Packages that the teacher's stored config may name.

    Raises:
        ConfigError: There is no such run, or it was trained with a different task.
    """
    if not isinstance(path, str):
        raise ConfigError(format_error("loss.teacher", "must be a run folder", value=path))
    if not (Path(path) / CHECKPOINTS).is_dir():
        raise ConfigError(format_error("loss.teacher", "contains no run", "Name a run folder", value=path))
    try:
        snapshot = Store(Path(path) / CHECKPOINTS, keep=2).load("best")
    except CheckpointError as error:
        raise ConfigError(
            format_error("loss.teacher", "has no usable checkpoint", str(error).rstrip("."), value=path)
        ) from error
    assert snapshot.config_file is not None
    unused = TRAINING_KEYS if "loss" in snapshot.tensors else (*TRAINING_KEYS, "loss")
    job = job_from_text(snapshot.text(CONFIG), trust, file=snapshot.config_file, unused=unused)
    stored, own = snapshot.json(TASK), json.loads(json.dumps(task.state_dict()))
    if different := [name for name in own if own[name] != stored.get(name)]:
        remedy = "Train both on the same data with the same task"
        problem = f"was trained with a different {' and '.join(different)}"
        raise ConfigError(format_error("loss.teacher", problem, remedy, value=path))

    def build_own_loss() -> Loss | None:
        # Only a loss with weights of its own changes the outputs; any other may need a teacher that is gone.
        has_weights = "loss" in snapshot.tensors
        with bounded_build("loss", snapshot, {"loss": job.loss}):
            return instantiate("loss", job.loss, **task.info().arguments()) if has_weights else None

    # The student starts from the same weights whichever teacher it has.
    with torch.random.fork_rng(devices=[]):
        restored = restore_model(job, task, snapshot, "auto", build_own_loss)
    model = restored.model if restored.loss is None else with_loss_head(restored.model, restored.loss)
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.contiguous().view(torch.uint8).numpy() if tensor.ndim else tensor.numpy().tobytes())
    identity = {"step": snapshot.step, "sha256": digest.hexdigest()}
    return Teacher(model.to(device).eval().requires_grad_(False), identity)
