"""A model rebuilt from a checkpoint, with everything that evaluating, exporting and predicting need."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trainer.builders.data import build_encoded, build_task, loader_options
from trainer.builders.device import build_device
from trainer.builders.loss import build_loss, needs_teacher
from trainer.builders.model import merge_adapters, restore_model
from trainer.capture import MASKS
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.store import Store
from trainer.config.jobs import TrainJob
from trainer.config.stored import TRAINING_KEYS, blaming_config, job_from_text, parse_stored_config
from trainer.data.batches import Batches, EvaluationBatches
from trainer.data.encode import Encoded
from trainer.errors import ConfigError, did_you_mean, format_error
from trainer.export.folder import link
from trainer.export.formats.weights import save_library
from trainer.files.atomic_io import replaced_folder
from trainer.layout import CHECKPOINT_MANIFEST, CHECKPOINTS, CONFIG, MODEL, STATE, TASK, Document, step_name
from trainer.loss.cross_entropy import CrossEntropy
from trainer.model.pretrained_folder import ABOUT, LibraryModel
from trainer.protocols import Batch, Batching, HasTagTransitions, Loss, Task, UsesTagTransitions
from trainer.prune.masks import measure_sparsity, sparsity_report
from trainer.shapes import to_json
from trainer.targets import with_loss_head
from trainer.validation_sets import VALIDATION, by_split, is_validation, select_monitored, validation_of

if TYPE_CHECKING:
    from trainer.distributed.ranks import Ranks
    from trainer.files.mapped import MappedRows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointedModel:
    """The model of a checkpoint with its task, its loss and its origin.

    Attributes:
        folder: The run folder.
        job: The run's config.
        step: The checkpoint's step.
        weights: The selected weights, `raw` or `ema`.
        task: The fitted task.
        model: The model with the selected weights, in evaluation mode.
        loss: The loss, with its own weights if it has some; None if nobody needs it.
        device: The device of the model and the loss.
        origin: The run, step and config of the weights (JSON).
        config_text: The run's config as it is stored.
    """

    folder: Path
    job: TrainJob
    step: int
    weights: str
    task: Task
    model: nn.Module
    loss: Loss | None
    device: torch.device
    origin: Document
    config_text: str

    @cached_property
    def encoded(self) -> Encoded:
        """The run's encoded data, read when it is first needed."""
        return build_encoded(self.job, self.task, fitted=True)

    @property
    def provenance(self) -> Document:
        """The origin of the weights and the fingerprint of their data, as artifacts carry it."""
        return {**self.origin, "data": self.encoded.fingerprint}

    def inference_model(self) -> nn.Module:
        """Return the model as it is deployed: adapters merged, and the loss's head included if it has one."""
        model = merge_adapters(self.job, self.model)
        return model if self.loss is None else with_loss_head(model, self.loss)

    def split_batches(self, split: str, batching: Batching, count: int | None = None) -> Iterator[Batch]:
        """Yield the batches of a split in order, once; with `count`, of only that many evenly spaced samples.

        Raises:
            ConfigError: The data has no such split.
        """
        rows = select_split(self.encoded, split)
        if count is not None and count < len(rows):
            rows = rows.select([number * len(rows) // count for number in range(count)])
        yield from self.batches(rows, batching)

    def proof_batches(self, split: str) -> Iterator[Batch]:
        """Yield the padded batches of a split once, the longest samples first, so that batches have little padding.

        Raises:
            ConfigError: The data has no such split.
        """
        rows = select_split(self.encoded, split)
        lengths = self.task.lengths(rows)
        yield from self.batches(rows, "padded", order=None if lengths is None else np.argsort(-lengths, kind="stable"))

    def batches(
        self, rows: MappedRows, batching: Batching, ranks: Ranks | None = None, order: np.ndarray | None = None
    ) -> Iterator[Batch]:
        """Yield the batches of encoded rows in order, once; `loader` describes the arguments."""
        with closing(self.loader(rows, batching, ranks, order)) as loader:
            yield from loader

    def loader(
        self, rows: MappedRows, batching: Batching, ranks: Ranks | None = None, order: np.ndarray | None = None
    ) -> EvaluationBatches:
        """Return the batches of encoded rows, to be closed; if several processes share them, this process's share.

        Args:
            rows: The rows.
            batching: The layout of a batch.
            ranks: The processes that share the batches; None is this process alone.
            order: The positions of the rows in the order in which they are read; None is their own order.
        """
        batches = Batches(rows, self.task, batching, self.job.seed)
        options = loader_options(self.job, self.device, batching)
        positions = None if order is None else order.tolist()
        size = self.job.loader.eval_batch_size
        return EvaluationBatches(batches, size, options, ranks, order=positions)


def load_checkpointed_model(
    folder: Path,
    trust: Sequence[str] | None,
    overrides: Sequence[tuple[str, Any]] = (),
    *,
    checkpoint: str,
    weights: str,
    device: str,
    needs_loss: bool = True,
) -> CheckpointedModel:
    """Load the model of a checkpoint.

    Args:
        folder: The run folder.
        trust: Packages that the stored config may name; None if this process wrote it.
        overrides: Full keys and values that replace keys of the stored config.
        checkpoint: `best`, `last` or `step-N`.
        weights: `raw`, `ema`, or `auto` for the weights that scored better.
        device: The device's name as in a config.
        needs_loss: Build the loss; otherwise only if it has weights, because the outputs then depend on it.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged, or its config cannot be used.
    """
    # The state of the optimizer, and the weights that are not selected, would take several times the model's memory.
    snapshot = Store(folder / CHECKPOINTS, keep=2).load(checkpoint, on_demand=True)
    config_text = snapshot.text(CONFIG)
    torch_device = build_device(device)
    needs_loss = needs_loss or "loss" in snapshot.tensors
    job, task = load_task(snapshot, trust, overrides, needs_loss=needs_loss)
    with blaming_config(snapshot.config_file):
        restored = restore_model(
            job, task, snapshot, weights, lambda: _build_loss(job, task, torch_device, snapshot) if needs_loss else None
        )
    if isinstance(task, UsesTagTransitions) and isinstance(restored.loss, HasTagTransitions):
        task.transitions = restored.loss.tag_transitions()
    manifest = folder / CHECKPOINTS / step_name(snapshot.step) / CHECKPOINT_MANIFEST
    origin = {
        "run": folder.name,
        "checkpoint_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "step": snapshot.step,
        "weights": restored.weights,
        "score": snapshot.json(STATE)["score"],
        "config_sha256": hashlib.sha256(config_text.encode()).hexdigest(),
    }
    model = restored.model.to(torch_device).eval()
    if MASKS in snapshot.tensors:
        zeros = sparsity_report(measure_sparsity(model, snapshot.named_tensors(MASKS).keys()))
        origin["pruning"] = {"method": parse_stored_config(config_text)["prune"], **zeros}
    return CheckpointedModel(
        folder, job, snapshot.step, restored.weights, task, model, restored.loss, torch_device, origin, config_text
    )


def load_task(
    snapshot: Snapshot, trust: Sequence[str] | None, overrides: Sequence[tuple[str, Any]], *, needs_loss: bool
) -> tuple[TrainJob, Task]:
    """Return the job and the fitted task of a checkpoint, for other purposes than training.

    Raises:
        CheckpointError: The config cannot be used.
    """
    file = snapshot.config_file or Path(CONFIG)
    unused = TRAINING_KEYS if needs_loss else (*TRAINING_KEYS, "loss")
    job = job_from_text(snapshot.text(CONFIG), trust, overrides, file=file, unused=unused)
    with blaming_config(file):
        return job, build_task(job, snapshot.json(TASK))


def _build_loss(job: TrainJob, task: Task, device: torch.device, snapshot: Snapshot) -> Loss:
    """Build the loss; if its teacher is gone, cross entropy: a checkpoint must need nothing but itself."""
    try:
        return build_loss(job, task, device, snapshot)
    except ConfigError as error:
        if not needs_teacher(job):
            raise
        logger.warning("%s The loss shown is the cross entropy with the labels only.", error)
        return CrossEntropy(None, 0.0, job.loss["ignore_index"])


def resolve_split(split: str, job: TrainJob) -> str:
    """Return the split that a user names: of several validation sets, `validation` is the monitored one.

    Raises:
        ConfigError: There is no such validation set.
    """
    if not is_validation(split):
        return split
    splits = list(by_split(validation_of(job.data)))
    if split == VALIDATION:
        return select_monitored(job.checkpoint.monitor, splits)[0]
    if split not in splits:
        raise ConfigError(
            format_error("split", "the data has no such validation set", did_you_mean(split, splits), value=split)
        )
    return split


def select_split(encoded: Encoded, split: str) -> MappedRows:
    """Return the rows of a split.

    Raises:
        ConfigError: The data has no such split.
    """
    if split not in encoded.splits:
        remedy = did_you_mean(split, list(encoded.splits))
        raise ConfigError(format_error("split", "the data has no such split", remedy, value=split))
    return encoded.splits[split]


def save_model(checkpointed: CheckpointedModel) -> Path:
    """Write `model/` in the run folder: the selected weights, their description, and the task's files.

    A library's model is written in that library's own layout, with our description in `trainer.json`.
    """
    from safetensors.torch import save_file

    model, task = checkpointed.inference_model().cpu(), checkpointed.task
    description = {
        "model": parse_stored_config(checkpointed.config_text)["model"],  # without values of the environment
        "facts": task.info().arguments(),
        "provenance": checkpointed.provenance,
    }
    with replaced_folder(checkpointed.folder / MODEL) as folder:
        if isinstance(model, LibraryModel):
            with torch.no_grad():
                save_library(model, folder, task, half=False)
        else:
            # Tied weights are stored under each of their names: the format has no shared tensors.
            tensors = {name: tensor.detach().contiguous().clone() for name, tensor in model.state_dict().items()}
            save_file(tensors, folder / "model.safetensors")
        name = ABOUT if isinstance(model, LibraryModel) else "config.json"
        (folder / name).write_text(to_json(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for name, text in task.artifact_files().items():
            (folder / name).write_text(text, encoding="utf-8")
        _keep_other_files(checkpointed.folder / MODEL, folder)
    return checkpointed.folder / MODEL


def _keep_other_files(old: Path, new: Path) -> None:
    """Give the files in `old` that `new` does not have, such as a model card, a place there too."""
    for place, _, names in os.walk(old):
        for path in (Path(place, name) for name in names):
            target = new / path.relative_to(old)
            if path.is_file() and not target.exists():  # no pipe, whose copy would wait
                link(path, target)
