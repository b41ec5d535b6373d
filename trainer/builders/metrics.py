"""The metrics of a job: the metrics of its task, and the ones that the key `metrics` adds."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainer.builders.instantiate import instantiate
from trainer.config.jobs import TrainJob
from trainer.config.metrics import kind_of, metric_name, name_problem
from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.progress import phase
from trainer.protocols import HasDecisionRule, HasUnits, LanguageModelTask, Task

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

    from trainer.task.classification_metrics import Prepare

_TRIAL_ROWS = 8


def build_metrics(job: TrainJob, task: Task) -> MetricCollection:
    """Build new metrics of a job for a fitted task.

    Raises:
        ConfigError: An added metric does not fit the task, cannot be made, or has no single number as its value.
    """
    with nullcontext() if "torchmetrics" in sys.modules else phase("loading the metrics"):
        metrics = task.metrics()
    if not job.metrics:
        return metrics
    own = [str(name) for name in metrics]
    kind = _kind(task)
    problems: list[str] = []
    added: dict[str, Metric | MetricCollection] = {}
    for number, entry in enumerate(job.metrics):
        path, name = f"metrics.{number}", metric_name(entry)
        try:
            if isinstance(entry, Mapping):
                added[name] = _build_class(path, entry, task)
            elif name not in own:
                added[name] = _build_named(path, name, task, kind, own)
        except ConfigError as error:
            problems += error.messages
    raise_if_any(*problems)
    metrics.add_metrics(added)
    return metrics


def build_class_metrics(job: TrainJob, task: Task) -> dict[str, Metric]:
    """Build the metrics of a job that are named by a class, by name, for one process: they get prepared values."""
    from torchmetrics import Metric

    from trainer.task.classification_metrics import PreparedMetric

    if not any(isinstance(entry, Mapping) for entry in job.metrics or ()):
        return {}
    metrics, class_metrics = build_metrics(job, task), {}
    for name in (metric_name(entry) for entry in job.metrics or () if isinstance(entry, Mapping)):
        prepared = metrics[name]
        assert isinstance(prepared, PreparedMetric), "see `_build_class`"
        for module in prepared.modules():
            if isinstance(module, Metric):
                module.distributed_available_fn = lambda: False  # only the first of several processes computes it
        class_metrics[name] = prepared.metric
    return class_metrics


def check_metrics(job: TrainJob, task: Task) -> None:
    """Try the metrics that a job adds on a few invented rows, so that one that does not work is reported at once.

    Raises:
        ConfigError: One does not work.
    """
    if not job.metrics:  # torchmetrics is not loaded before the first evaluation
        return
    metrics = build_metrics(job, task)
    problems = []
    for number, entry in enumerate(job.metrics):
        if isinstance(entry, Mapping):
            metric = metrics[metric_name(entry)]
            try:
                with warnings.catch_warnings(), torch.inference_mode():
                    warnings.simplefilter("ignore")
                    metric.update(*_invented_rows(task))
                    value = metric.compute()
            except Exception as error:  # of the user's code
                problem = f"does not work for this task ({type(error).__name__}: {' '.join(str(error).split())})"
                problems.append(format_error(f"metrics.{number}", problem, value=entry["_target_"]))
                continue
            if not isinstance(value, Tensor) or value.numel() != 1:
                size = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                problem, remedy = f"must compute one number, but computes {size}", "Name another metric"
                if getattr(metric.metric, "average", "macro") in (None, "none") and value.ndim == 1:
                    remedy = "Set average: macro, for example"
                problems.append(format_error(f"metrics.{number}", problem, remedy, value=entry["_target_"]))
    raise_if_any(*problems)


def _kind(task: Task) -> str:
    causal = task.causal if isinstance(task, LanguageModelTask) else None
    return kind_of(task.target, level=task.info().output_level, causal=causal)


def _build_named(path: str, name: str, task: Task, kind: str, own: Sequence[str]) -> Metric:
    from trainer.task.named_metrics import build_named_metric

    if problem := name_problem(name, kind, own):
        raise ConfigError(format_error(path, *problem, value=name))
    outputs = task.info().num_outputs or 0
    top = name.removeprefix("top_").removesuffix("_accuracy")
    if top.isdigit() and int(top) > outputs:
        too_many = f"has more classes at the top than there are ({outputs})"
        raise ConfigError(format_error(path, too_many, "Use a smaller number", value=name))
    decide = task.decide if isinstance(task, HasDecisionRule) and task.decision_rule is not None else None
    return build_named_metric(name, kind, outputs, _prepare(task, flat=False), decide)


def _build_class(path: str, entry: Mapping[str, Any], task: Task) -> Metric:
    """Make a metric of a class, which gets the number of classes or labels if it has a parameter for it."""
    from torchmetrics import Metric

    from trainer.task.classification_metrics import PreparedMetric

    outputs = task.info().num_outputs
    context: dict[str, Any] = {"num_outputs": outputs}
    if task.target == "class":
        context = {"task": "multiclass", "num_classes": outputs}
    elif task.target == "multi_hot":
        context = {"task": "multilabel", "num_labels": outputs}
    part = {key: value for key, value in entry.items() if key != "name"}
    try:
        metric = instantiate(path, part, **context)
    except ImportError as error:  # torchmetrics leaves the packages of some metrics to the user
        raise ConfigError(format_error(path, str(error), value=entry["_target_"])) from error
    if not isinstance(metric, Metric):
        problem = f"must make a torchmetrics.Metric, but makes {type(metric).__name__}"
        remedy = "Name a class of metrics, such as torchmetrics.AUROC"
        raise ConfigError(format_error(f"{path}._target_", problem, remedy, value=entry["_target_"]))
    return PreparedMetric(metric, _prepare(task, flat=True))


def _prepare(task: Task, *, flat: bool) -> Prepare:
    """Return what prepares outputs and targets for added metrics; `flat` makes single values a vector (B,)."""
    from trainer.task.named_metrics import prepare_classes, prepare_labels

    if task.target == "class":
        return prepare_classes
    if task.target == "multi_hot":
        return prepare_labels
    if task.target == "values" and isinstance(task, HasUnits):
        return partial(_in_units, task, flat)
    return lambda output, target: (output, target)


def _in_units(task: HasUnits, flat: bool, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    values, expected = task.in_units(output), task.in_units(target)
    return (values[:, 0], expected[:, 0]) if flat and values.shape[1] == 1 else (values, expected)


def _invented_rows(task: Task) -> tuple[Tensor, Tensor]:
    """Return outputs and targets of a few rows as the task has them, without the run's random numbers."""
    width = task.info().num_outputs or 1
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(_TRIAL_ROWS, width, generator=generator)
    if task.target == "class":
        return output, torch.arange(_TRIAL_ROWS) % width
    if task.target == "multi_hot":
        return output, torch.randint(2, output.shape, generator=generator).float()
    if task.target == "views":
        return output, torch.arange(_TRIAL_ROWS // 2)[:, None].expand(-1, 2)
    if task.target == "similarity":
        return output, torch.ones(_TRIAL_ROWS // 2)
    if task.target == "spans":
        scores = torch.randn(_TRIAL_ROWS, width, 4, 4, generator=generator)
        return scores, torch.arange(width).expand(_TRIAL_ROWS, 4, width).clone()
    return output, torch.randn(output.shape, generator=generator)
