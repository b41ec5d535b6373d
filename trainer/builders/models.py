"""The model of a job: made, given its weights, frozen, and what is put around it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from trainer.builders.instantiate import make
from trainer.checkpoint.snapshot import Snapshot
from trainer.config.duration import to_steps
from trainer.config.jobs import TrainJob
from trainer.config.schema import own_keys
from trainer.config.sections import LoraKeys, ModelKeys
from trainer.errors import ConfigError, format_error
from trainer.export.cases import traced_inputs
from trainer.model.features import FeatureExtractor
from trainer.model.freezing import fitting, freeze, gradual
from trainer.model.lora import apply_lora, merge_lora
from trainer.model.noisy_tune import noisy_tune
from trainer.model.pretrained_folder import weights_of_run
from trainer.model.weights import fit_weights
from trainer.model.weights_file import load_weights_file
from trainer.model.weights_origin import doubts, tokenizer_beside
from trainer.protocols import Batching, Loss, Task

logger = logging.getLogger(__name__)

ARCHITECTURE = "model.json"
"""The document of a checkpoint that makes a model again whose files may be gone."""


def make_model(job: TrainJob, task: Task, snapshot: Snapshot | None, *, num_outputs: int | None = None) -> nn.Module:
    """The model on the CPU, as the config says; with a snapshot without what only a start needs.

    Args:
        job: The checked config.
        task: Fitted.
        snapshot: Whose weights are to be loaded into it; None starts anew.
        num_outputs: The features that the loss reads; None: what the task asks for.

    Raises:
        ConfigError: It cannot be made so.
    """
    facts = task.facts() if num_outputs is None else task.facts() | {"num_outputs": num_outputs}
    if snapshot is not None and ARCHITECTURE in snapshot.documents:
        facts["architecture"] = json.loads(snapshot.documents[ARCHITECTURE])
    model: nn.Module = make("model", own_keys(job.model, ModelKeys), **facts)
    settings = ModelKeys(**{key: value for key, value in job.model.items() if key in ModelKeys.__dataclass_fields__})
    tokenizer = job.task.get("tokenizer")
    if snapshot is None and settings.weights and tokenizer and tokenizer == tokenizer_beside(settings.weights):
        logger.info("task.tokenizer=%s: the one that model.weights were learnt with", tokenizer)
    try:
        return _prepared(model, settings, job.seed, task, facts, fresh=snapshot is None)
    except ConfigError as error:
        raise ConfigError(*(f"model.{message}" for message in error.messages)) from error


def _prepared(
    model: nn.Module, settings: ModelKeys, seed: int, task: Task, facts: Mapping[str, Any], *, fresh: bool
) -> nn.Module:
    if fresh and settings.weights is not None:
        found = weights_of_run(model, settings.weights) or load_weights_file(settings.weights)
        report = fit_weights(model, found, settings.weights_rename, settings.weights_ignore)
        logger.info("model.weights=%s: %s", settings.weights, report)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in report.loaded}
        for doubt in doubts(settings.weights, shapes, task.artifact_files(), facts):
            logger.warning("model.%s", doubt)
    if fresh and settings.noisy_tune is not None:
        noisy_tune(model, settings.noisy_tune, torch.Generator().manual_seed(seed))
    if patterns := [entry for entry in settings.freeze if isinstance(entry, str)]:
        names = freeze(model, patterns)
        logger.info("model.freeze: %d parameters stay as they are", len(names))
    if settings.features:
        if facts.get("output_level") == "token":
            raise ConfigError(format_error("features", "serve tasks with one output a sample", value=settings.features))
        model = FeatureExtractor(model, settings.features, facts["num_outputs"], traced_inputs(task))
    if settings.lora is not None:
        targets = apply_lora(model, **asdict(LoraKeys(**settings.lora)))
        logger.info("model.lora: adapters on %d layers", len(targets))
    return model


def placed(job: TrainJob, model: nn.Module, device: torch.device) -> nn.Module:
    """The model on its device; with `model.channels_last` 4-d weights lie there as (out, height, width, in).

    Convolutions pass the layout on, so the images need not be brought into it. Shapes, names and what is stored stay
    the same; the results are equal to rounding, as kernels sum in another order.

    Raises:
        ConfigError: The model has no 2-d convolution.
    """
    if job.model.get("channels_last"):
        if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            problem = "this model has no 2-d convolution"
            raise ConfigError(format_error("model.channels_last", problem, "Leave it out", value=True))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no overload has it alone
    return model.to(device)


def build_thaw(
    job: TrainJob, model: nn.Module, loss: Loss, steps_per_epoch: int, total_steps: int
) -> Callable[[int], None]:
    """Makes the parameters trainable that `model.freeze` freezes up to a step; told the updates done.

    Args:
        job: The checked config.
        model: Whose parameters they are.
        loss: Its own parameters are never frozen.
        steps_per_epoch: Of a duration in epochs.
        total_steps: Of a duration in percent.

    Raises:
        ConfigError: An entry fits nothing, or nothing could be trained at the start.
    """
    entries = [entry for entry in job.model.get("freeze", []) if not isinstance(entry, str)]
    if not entries:
        return lambda step: None
    pairs = [
        (entry["match"], to_steps(entry["until"], steps_per_epoch, total_steps, key="model.freeze"))
        for entry in entries
    ]
    backbone = model.backbone if isinstance(model, FeatureExtractor) else model
    assert isinstance(backbone, nn.Module)
    try:
        thaw = gradual(backbone, pairs)
    except ConfigError as error:
        raise ConfigError(*(f"model.{message}" for message in error.messages)) from error
    starts = {parameter: step for pattern, step in pairs for parameter in fitting(backbone, pattern)}
    parts = [model, loss] if isinstance(loss, nn.Module) else [model]
    trained = [parameter for part in parts for parameter in part.parameters() if parameter.requires_grad]
    if all(starts.get(parameter, 0) > 0 for parameter in trained):
        problem = "nothing would be trained at the start"
        raise ConfigError(format_error("model.freeze", problem, "Leave something out, such as the head", value=entries))
    return thaw


def architecture_documents(model: nn.Module) -> dict[str, str]:
    """What a checkpoint holds so that the model can be made again without its files."""
    own = model.backbone if isinstance(model, FeatureExtractor) else model
    architecture = getattr(own, "architecture", None)
    return {} if architecture is None else {ARCHITECTURE: json.dumps(architecture, ensure_ascii=False) + "\n"}


def batching_of(job: TrainJob, model: nn.Module) -> Batching:
    """The layout of the job's batches: padded where it says packed and the model cannot take that."""
    own = model.backbone if isinstance(model, FeatureExtractor) else model
    if job.loader.batching == "packed" and getattr(own, "packed", True) is False:
        logger.info("loader.batching: this model takes no packed batches; they are padded")
        return "padded"
    return job.loader.batching


def merged(job: TrainJob, model: nn.Module) -> nn.Module:
    """The model with its adapters in its weights: a copy where it has adapters."""
    if job.model.get("lora") is None:
        return model
    copy = deepcopy(model)
    merge_lora(copy)
    return copy
