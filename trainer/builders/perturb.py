"""Build the moved weights or the consistency of a run from the group `perturb`."""

from __future__ import annotations

import logging

from torch import nn

from trainer.builders.instantiate import in_group, instantiate, locate
from trainer.builders.optimizer import convert_durations
from trainer.config.compatibility import SUM_REMEDY, SUM_WITHOUT_STATISTIC, incompatible_targets
from trainer.config.jobs import TrainJob
from trainer.display import list_some
from trainer.errors import ConfigError, format_error
from trainer.layout import Document
from trainer.perturb.moved_weights import MovedWeights, select_weights
from trainer.protocols import ComparesOutputs, HasBatchStatistic, HasTrainTarget, Loss, PerturbsWeights, Task

logger = logging.getLogger(__name__)

_MAX_NAMES = 3


def build_perturbation(
    job: TrainJob, task: Task, model: nn.Module, loss: Loss, steps_per_epoch: int, total_steps: int
) -> tuple[MovedWeights | None, ComparesOutputs | None]:
    """Build what moves weights during training, or compares two passes; None is what the group `perturb` does not do.

    Args:
        job: The checked config.
        task: The task.
        model: The model, after it was divided into shards.
        loss: The loss.
        steps_per_epoch: Steps per epoch, for durations in epochs.
        total_steps: Steps of the run, for durations in percent.

    Raises:
        ConfigError: The part does not fit its contract, the task or the loss, or no weight that it moves is trained.
    """
    if job.perturb is None:
        return None, None
    moved, consistency = _build(
        convert_durations("perturb", job.perturb, steps_per_epoch, total_steps), task, model, loss
    )
    if moved is not None and (start := moved.method.start_steps) < total_steps:  # else a warning says so
        names = list(moved.weights)
        shown = list_some(names, _MAX_NAMES)
        steps = f"each step after step {start}" if start else "each step"
        logger.info("perturb: %s moves %s and takes %d forward and backward passes", steps, shown, moved.passes)
    return moved, consistency


def check_perturbation(job: TrainJob, task: Task, model: nn.Module, loss: Loss) -> None:
    """Check that the group `perturb` fits the task, the loss and the model.

    Raises:
        ConfigError: As `build_perturbation`.
    """
    if job.perturb is not None:
        at_once = {key: 0 if key == "start" else value for key, value in job.perturb.items()}
        _build(convert_durations("perturb", at_once, 1, 1), task, model, loss)


def compares_outputs(job: TrainJob) -> bool:
    """Return whether the group `perturb` compares the outputs of two passes."""
    return job.perturb is not None and getattr(locate("perturb", job.perturb), "perturbs", None) == "outputs"


def _build(
    config: Document, task: Task, model: nn.Module, loss: Loss
) -> tuple[MovedWeights | None, ComparesOutputs | None]:
    part, name = locate("perturb", config), config["_target_"]
    target = task.train_target if isinstance(task, HasTrainTarget) else task.target
    if (supported := getattr(part, "perturbs", None) == "outputs" and getattr(part, "targets", None)) and (
        target not in supported
    ):
        raise ConfigError(format_error("perturb", incompatible_targets(supported, target), SUM_REMEDY, value=name))
    method = instantiate("perturb", config, target=target)
    contract = ComparesOutputs if getattr(method, "perturbs", None) == "outputs" else PerturbsWeights
    if not isinstance(method, contract):
        problem = f"{type(method).__name__} lacks members of {contract.__name__} (trainer/protocols)"
        raise ConfigError(format_error("perturb._target_", problem, value=name))
    if isinstance(method, PerturbsWeights):
        with in_group("perturb"):
            return MovedWeights(method, model, select_weights(method, model)), None
    if isinstance(loss, HasBatchStatistic) and loss.is_batch_statistic:
        raise ConfigError(format_error("perturb", SUM_WITHOUT_STATISTIC, SUM_REMEDY))
    return None, method
