"""The optimizer of a job and its learning-rate schedule."""

from __future__ import annotations

import inspect
import logging

import torch
from torch import nn

from trainer.builders.instantiate import in_group, instantiate, locate, parameters
from trainer.config import schema
from trainer.config.jobs import TrainJob
from trainer.config.schema import option_keys
from trainer.config.sections import OptimizerKeys
from trainer.display import counted
from trainer.durations import to_steps
from trainer.errors import ConfigError, format_error
from trainer.layout import Document
from trainer.optimizer.parameter_groups import hidden_matrix_names, layer_indices, make_parameter_groups, no_decay_names
from trainer.protocols import Loss, Schedule

logger = logging.getLogger(__name__)


def build_optimizer(job: TrainJob, model: nn.Module, loss: Loss) -> torch.optim.Optimizer:
    """Build the optimizer of the model's and the loss's parameters; each group carries its `initial_lr`.

    Raises:
        ConfigError: Nothing is trainable, or the optimizer cannot be built.
    """
    modules = nn.ModuleDict({"model": model})
    if isinstance(loss, nn.Module):
        modules["loss"] = loss
    if not any(parameter.requires_grad for parameter in modules.parameters()):
        remedy = "Leave something trainable, such as the head"
        raise ConfigError(format_error("model.freeze", "leaves nothing to train", remedy, value=job.model["freeze"]))
    config = option_keys(job.optimizer, OptimizerKeys)
    with in_group("optimizer"):
        groups = make_parameter_groups(
            modules.named_parameters(),
            lr=config.get("lr"),
            weight_decay=config.get("weight_decay"),
            no_decay=no_decay_names(modules),
            layers=layer_indices(modules),
            **{key: job.optimizer[key] for key in schema.keys(OptimizerKeys) if key in job.optimizer},
        )
    optimizer: torch.optim.Optimizer = instantiate(
        "optimizer", config, params=groups, hidden=hidden_matrix_names(modules)
    )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        problem = "optimizers that need a closure are not supported"
        raise ConfigError(format_error("optimizer._target_", problem, value=job.optimizer["_target_"]))
    for group in optimizer.param_groups:
        group["initial_lr"] = float(group["lr"])
    return optimizer


def build_schedule(job: TrainJob, steps_per_epoch: int, total_steps: int) -> Schedule:
    """Build the schedule: step to learning-rate factor."""
    config = convert_durations("scheduler", job.scheduler, steps_per_epoch, total_steps)
    schedule: Schedule = instantiate("scheduler", config, total_steps=total_steps)
    with in_group("scheduler"):
        schedule(0)
    return schedule


def convert_durations(group: str, part: Document, steps_per_epoch: int, total_steps: int) -> Document:
    """Return the keys of a part in steps: if its target has a parameter `x_steps`, the key `x` is a duration."""
    names = parameters(locate(group, part))
    config: Document = {}
    for key, value in part.items():
        if f"{key}_steps" in names:
            steps = config[f"{key}_steps"] = to_steps(value, steps_per_epoch, total_steps)
            if steps > total_steps:
                length = counted(total_steps, "step")
                logger.warning("%s.%s: %s is longer than the run of %s", group, key, value, length)
            elif key == "start" and steps == total_steps:
                logger.warning("%s.%s: %s is the end of the run: no step is left", group, key, value)
        else:
            config[key] = value
    return config
