"""What answers the rows of `trainer predict`: a checkpoint's model, or the graph that was exported of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.build import parts
from trainer.build.models import batching_of, merged
from trainer.checkpoint.store import Store
from trainer.commands.folders import CHECKPOINTS, named_checkpoint
from trainer.commands.trained import load_trained
from trainer.config.jobs import PredictJob, TrainJob
from trainer.config.sections import ColumnsSection
from trainer.config.stored import job_from_text
from trainer.errors import CheckpointError, explain
from trainer.precision import Precision
from trainer.predict.answering import Answering, Forward, check_task
from trainer.predict.asked import Reading
from trainer.protocols import Batching, Task
from trainer.targets import scored


def answering_of(job: PredictJob, folder: Path, graph: Path | None) -> tuple[Answering, Reading]:
    """What answers rows, and how they are read: by the columns of the run's own data unless the job names others.

    Args:
        job: The checked config.
        folder: The run folder.
        graph: The artifact that answers; None: the model of a checkpoint.

    Raises:
        CheckpointError: The checkpoint or the artifact cannot be used.
        ConfigError: The run's task answers no rows.
    """
    checkpoint = named_checkpoint(job.run, job.checkpoint)

    def read_config(text: str) -> TrainJob:
        return job_from_text(text, trust=job.trust, overrides=job.stored_overrides)

    batching: Batching = "padded"
    if graph is not None:
        own, task = _task(folder, checkpoint, read_config)
        forward = _graph_forward(graph)
    else:
        trained = load_trained(folder, read_config, checkpoint=checkpoint, weights=job.weights, device=job.device)
        own, task = trained.job, trained.task
        batching = "packed" if batching_of(own, trained.model) == "packed" else "padded"
        model = scored(merged(own, trained.model), trained.loss).eval()
        forward = _model_forward(model, trained.device, Precision(job.precision, trained.device))
    check_task(task)
    return Answering(task, forward, batching, own.loader.eval_batch_size, job.top), _reading(own, task, job.columns)


def _task(folder: Path, checkpoint: str, read_config: Any) -> tuple[TrainJob, Task]:
    """The run's config and its task, without the weights."""
    found = Store(folder / CHECKPOINTS, keep=2).find(checkpoint)
    job: TrainJob = read_config((found / "config.yaml").read_text("utf-8"))
    return job, parts.build_task(job, json.loads((found / "task.json").read_text("utf-8")))


def _model_forward(model: nn.Module, device: torch.device, precision: Precision) -> Forward:
    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.inference_mode(), precision.autocast():
            output: Tensor = model(**{name: value.to(device) for name, value in inputs.items()})
        return output

    return forward


def _graph_forward(path: Path) -> Forward:
    from trainer.export.onnx import open_session

    try:
        forward, _, _ = open_session(path)
    except Exception as error:  # ONNX Runtime raises types of its own
        reason = str(error).strip().splitlines()[0]
        remedy = "Export it again: trainer export"
        raise CheckpointError(explain(str(path), f"cannot be loaded ({reason})", remedy)) from error
    return forward


def _reading(job: TrainJob, task: Task, named: ColumnsSection) -> Reading:
    data = job.data
    own: dict[str, Any] = {"text": data["text"]} if "text" in data else {}
    own |= data["columns"] if isinstance(data.get("columns"), Mapping) else {}
    own |= {role: column for role, column in vars(named).items() if column is not None}
    return Reading(
        roles=tuple(task.reads()),
        columns=own,
        numeric=getattr(task, "numeric", {}),
        list_separator=data.get("list_separator", " "),
        separator=data.get("separator"),
        quote=data.get("quote", '"'),
    )
