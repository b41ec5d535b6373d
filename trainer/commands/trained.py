"""A trained model out of a run folder, with all that evaluating and exporting it needs."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainer.builders import parts
from trainer.builders.models import make_model, merged
from trainer.checkpoint.store import Store
from trainer.config.jobs import TrainJob
from trainer.data.encode import Encoded
from trainer.data.loader import Batches, EvaluationBatches
from trainer.errors import ConfigError, did_you_mean, format_error
from trainer.export.weights import save_library
from trainer.layout import CHECKPOINTS
from trainer.loss.cross_entropy import CrossEntropy
from trainer.model.pretrained_folder import ABOUT, LibraryModel
from trainer.protocols import Batch, Batching, Loss, Task
from trainer.prune.sparsity import described, sparsity
from trainer.resume import MASKS, chosen_weights, load_weights
from trainer.targets import scored

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a checkpoint says, made again.

    Attributes:
        folder: The run folder.
        job: The run's config.
        step: The checkpoint's step.
        weights: `raw` or `ema`.
        task, model, loss: Its parts, the model with the chosen weights, in evaluation mode.
        device: Where they are.
        origin: Where the weights come from, but for the data.
        config_text: The run's config as it is stored.
    """

    folder: Path
    job: TrainJob
    step: int
    weights: str
    task: Task
    model: nn.Module
    loss: Loss
    device: torch.device
    origin: dict[str, Any]
    config_text: str

    @cached_property
    def encoded(self) -> Encoded:
        """The run's data, encoded; read when it is first asked for."""
        return parts.build_encoded(self.job, self.task, fitted=True)

    @property
    def provenance(self) -> dict[str, Any]:
        """Where the weights come from, for whoever gets an artifact."""
        return {**self.origin, "data": self.encoded.fingerprint}


def load_trained(
    folder: Path, read_config: Callable[[str], TrainJob], *, checkpoint: str, weights: str, device: str
) -> Trained:
    """The model of a checkpoint.

    Args:
        folder: The run folder.
        read_config: The stored config's text to a checked job; refuses what it does not trust.
        checkpoint: `best`, `last` or `step-N`.
        weights: `raw`, `ema`, or `auto` for those that scored better.
        device: As in a config.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    snapshot = Store(folder / CHECKPOINTS, keep=2).load(checkpoint)
    config_text = snapshot.documents["config.yaml"]
    job = read_config(config_text)
    where = parts.build_device(device)
    task = parts.build_task(job, json.loads(snapshot.documents["task.json"]))
    chosen, tensors, loss_tensors = chosen_weights(snapshot, weights)
    loss = _loss(job, task, where)
    if loss_tensors is not None:
        assert isinstance(loss, nn.Module)
        load_weights(loss, loss_tensors)
    model = make_model(job, task, snapshot, num_outputs=getattr(loss, "in_features", None)).to(where)
    load_weights(model, tensors)
    origin = {
        "run": folder.name,
        "step": snapshot.step,
        "weights": chosen,
        "score": json.loads(snapshot.documents["state.json"])["score"],
        "config_sha256": hashlib.sha256(config_text.encode()).hexdigest(),
    }
    if job.prune is not None:
        found = described(sparsity(model, snapshot.tensors[MASKS].keys()))
        origin["pruning"] = {"method": job.prune, **found}
    return Trained(folder, job, snapshot.step, chosen, task, model.eval(), loss, where, origin, config_text)


def _loss(job: TrainJob, task: Task, device: torch.device) -> Loss:
    """The loss; of a distillation whose teacher is gone its cross entropy: a checkpoint needs nothing else."""
    try:
        return parts.build_loss(job, task, device)
    except ConfigError as error:
        if not parts.needs_teacher(job):
            raise
        logger.warning("%s The loss shown is cross entropy with the labels alone.", error)
        return CrossEntropy(None, 0.0, job.loss["ignore_index"])


def split_batches(trained: Trained, split: str, batching: Batching, count: int | None = None) -> Iterator[Batch]:
    """The batches of a split, in order, once; of `count` of its samples, evenly spread over it, where that is given.

    Raises:
        ConfigError: There is no such split.
    """
    rows = rows_of(trained.encoded, split)
    if count is not None and count < len(rows):
        rows = rows.select([number * len(rows) // count for number in range(count)])
    yield from batches_of(trained, rows, batching)


def rows_of(encoded: Encoded, split: str) -> Dataset:
    """The rows of a split.

    Raises:
        ConfigError: There is no such split.
    """
    if split not in encoded.splits:
        remedy = did_you_mean(split, list(encoded.splits))
        raise ConfigError(format_error("split", "the data has no such split", remedy, value=split))
    return encoded.splits[split]


def batches_of(trained: Trained, rows: Dataset, batching: Batching) -> Iterator[Batch]:
    """The batches of encoded rows, in order, once."""
    batches = Batches(rows, trained.task, batching, trained.job.seed)
    options = parts.loader_options(trained.job, trained.device, batching)
    with closing(EvaluationBatches(batches, trained.job.loader.eval_batch_size, options)) as loader:
        yield from loader


def save_model(trained: Trained) -> Path:
    """Writes `model/` in the run folder: the chosen weights, what they are the weights of, and the task's files.

    A model that belongs to a library is written in that library's layout, with what is ours in `trainer.json`.
    """
    from safetensors.torch import save_file

    folder = trained.folder / "model"
    if folder.exists():
        shutil.rmtree(folder)  # of an earlier call, perhaps in another layout
    folder.mkdir()
    model = scored(merged(trained.job, trained.model), trained.loss).cpu()
    about = {"model": trained.job.model, "facts": trained.task.facts(), "provenance": trained.provenance}
    if isinstance(model, LibraryModel):
        with torch.no_grad():
            save_library(model, folder, trained.task, half=False)
    else:
        # Tied weights under each of their names: the format has no shared tensors.
        tensors = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors")
    name = ABOUT if isinstance(model, LibraryModel) else "config.json"
    (folder / name).write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, text in trained.task.artifact_files().items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder
