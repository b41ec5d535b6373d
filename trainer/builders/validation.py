"""The evaluations of a run on its validation splits, and the metric that picks the best checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
from torch import nn

from trainer.builders.metrics import build_metrics, check_metrics
from trainer.config.compatibility import UNKNOWN_METRIC
from trainer.config.jobs import TrainJob
from trainer.distributed.ranks import Ranks
from trainer.errors import ConfigError, did_you_mean, format_error
from trainer.evaluate import check_shareable, evaluate, metric_directions
from trainer.precision import Precision
from trainer.protocols import Batch, Loss, Task
from trainer.report.metric_names import metric_range
from trainer.run import Validation
from trainer.validation_sets import select_monitored


def build_validation(
    job: TrainJob,
    task: Task,
    batches: Mapping[str, Iterable[Batch]],
    precision: Precision,
    device: torch.device,
    ranks: Ranks,
) -> Validation:
    """Build the evaluations on the validation splits, from the batches of each.

    Raises:
        ConfigError: The task has no metric of the name `checkpoint.monitor`, or one that several devices cannot share.
    """
    check_metrics(job, task)
    if ranks.size > 1:
        check_shareable(build_metrics(job, task))

    def evaluate_on(own: Iterable[Batch], model: nn.Module, loss: Loss) -> dict[str, float]:
        metrics = build_metrics(job, task)
        return evaluate(model, loss, own, metrics, precision=precision, device=device, ranks=ranks)

    evaluators = {split: partial(evaluate_on, own) for split, own in batches.items()}
    split, metric = select_monitored(job.checkpoint.monitor, list(batches))
    monitor, find_direction = select_monitor(metric, job, task)
    return Validation(evaluators, split, monitor, find_direction, metric_range(monitor))


def select_monitor(metric: str | None, job: TrainJob, task: Task) -> tuple[str, Callable[[], bool]]:
    """Return the monitored metric, the task's own for None, and a function that returns True if higher is better.

    The library of the metrics takes a second to load, so that only the first evaluation asks for them if possible.

    Raises:
        ConfigError: The task has no metric of this name.
    """
    monitor = metric or task.monitor
    if monitor in (task.monitor, "loss") and type(task).__module__.startswith("trainer."):
        return monitor, lambda: metric_directions(build_metrics(job, task))[monitor]
    directions = metric_directions(build_metrics(job, task))
    if monitor not in directions:
        remedy = did_you_mean(monitor, list(directions))
        raise ConfigError(format_error("checkpoint.monitor", UNKNOWN_METRIC, remedy, value=monitor))
    return monitor, lambda: directions[monitor]
