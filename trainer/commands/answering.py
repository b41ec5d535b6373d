"""What answers the rows of `trainer predict`: a checkpoint's model, or the graph that was exported of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.builders.checkpointed import load_checkpointed_model
from trainer.builders.data import build_task
from trainer.builders.instantiate import instantiate
from trainer.builders.model import choose_batching
from trainer.checkpoint.store import Store
from trainer.commands.folders import named_checkpoint
from trainer.config.jobs import PredictJob, TrainJob
from trainer.config.sections import ColumnsSection
from trainer.config.stored import job_from_text, with_overrides
from trainer.config.trust import trusted
from trainer.data.readers import first_line_of
from trainer.errors import CheckpointError, format_error
from trainer.layout import CHECKPOINTS, CONFIG, TASK
from trainer.precision import Precision
from trainer.predict.answering import Answering, Forward, check_task
from trainer.predict.asked import Reading
from trainer.protocols import Batching, HasNumericColumns, Task

_CELLS = {"list_separator": " ", "separator": None, "quote": '"'}
"""What stands between and around the cells of a source that does not say."""


def answering_config(job: TrainJob, task: Task) -> dict[str, Any]:
    """What of a run's config answering rows needs, for whoever gets its artifacts alone: no file of the run is in it.

    It has the keys `task`, `data` and `loader` of that config.
    """
    columns = _columns(job.data)
    known = {role: columns[role] for role in task.input_columns() if isinstance(columns.get(role), str)}
    cells = {key: job.data.get(key, usual) for key, usual in _CELLS.items()}
    return {
        "task": job.task | ({"tokenizer": None} if "tokenizer" in job.task else {}),  # the task's state holds it
        "data": {"columns": known, **cells},
        "loader": {"eval_batch_size": job.loader.eval_batch_size},
    }


def answering_of_artifact(job: PredictJob, graph: Path, config: Mapping[str, Any]) -> tuple[Answering, Reading]:
    """What answers rows by a folder of artifacts alone, and how they are read.

    Args:
        job: The checked config.
        graph: The artifact that answers.
        config: What `answering_config` wrote, as the folder's manifest has it.

    Raises:
        CheckpointError: The folder is damaged, or names code that is not trusted.
    """
    if untrusted := trusted(config, job.trust):
        raise CheckpointError(*untrusted)
    config = with_overrides(config, job.stored_overrides)
    task: Task = instantiate("task", config["task"])
    try:
        task.load_state_dict(json.loads((graph.parent / TASK).read_text("utf-8")))
    except Exception as error:  # of many types: the folder came from anywhere
        problem = f"cannot be used ({type(error).__name__}: {first_line_of(error)})"
        raise CheckpointError(format_error(str(graph.parent / TASK), problem, "Get the folder again")) from error
    forward = _graph_forward(graph)
    size = config["loader"]["eval_batch_size"]
    return Answering(task, forward, "padded", size, job.top), _reading(config["data"], task, job.columns)


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
        trained = load_checkpointed_model(
            folder, read_config, checkpoint=checkpoint, weights=job.weights, device=job.device
        )
        own, task = trained.job, trained.task
        batching = "packed" if choose_batching(own, trained.model) == "packed" else "padded"
        model = trained.inference_model().eval()
        forward = _model_forward(model, trained.device, Precision(job.precision, trained.device))
    check_task(task)
    return Answering(task, forward, batching, own.loader.eval_batch_size, job.top), _reading(
        own.data, task, job.columns
    )


def _task(folder: Path, checkpoint: str, read_config: Any) -> tuple[TrainJob, Task]:
    """The run's config and its task, without the weights."""
    found = Store(folder / CHECKPOINTS, keep=2).find(checkpoint)
    job: TrainJob = read_config((found / CONFIG).read_text("utf-8"))
    return job, build_task(job, json.loads((found / TASK).read_text("utf-8")))


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
        raise CheckpointError(format_error(str(path), f"cannot be loaded ({reason})", remedy)) from error
    return forward


def _columns(data: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of the run's own data by their roles."""
    found: dict[str, Any] = {"text": data["text"]} if "text" in data else {}
    return found | (dict(data["columns"]) if isinstance(data.get("columns"), Mapping) else {})


def _reading(data: Mapping[str, Any], task: Task, named: ColumnsSection) -> Reading:
    return Reading(
        roles=tuple(task.input_columns()),
        columns=_columns(data) | {role: column for role, column in vars(named).items() if column is not None},
        numeric=task.numeric if isinstance(task, HasNumericColumns) else {},
        **{key: data.get(key, usual) for key, usual in _CELLS.items()},
    )
