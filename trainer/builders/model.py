"""The model of a job: built, initialized from weights, pruned, frozen, compiled, or restored from a checkpoint."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.builders.instantiate import in_group, instantiate
from trainer.builders.stored_sizes import bounded_build
from trainer.capture import MASKS, check_finite, load_weights, select_weights
from trainer.checkpoint.shards import FROZEN_FILE, MERGED, tensors_name
from trainer.checkpoint.snapshot import Snapshot, load_folder
from trainer.config.devices import SHAPES_REMEDY, VARYING_SHAPES, WITHOUT_GRAPHS
from trainer.config.jobs import TrainJob
from trainer.config.schema import option_keys
from trainer.config.sections import LoraKeys, ModelKeys, PruneKeys
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.decode.kv_cache import has_cache
from trainer.display import counted
from trainer.durations import to_steps
from trainer.errors import ConfigError, format_error
from trainer.export.cases import traced_inputs
from trainer.layout import CHECKPOINT_MANIFEST, Document, expand_home
from trainer.model.compilation import compile_for_training, keep_results_of_graphs
from trainer.model.feature_extractor import FeatureExtractor
from trainer.model.finetuning import (
    apply_lora,
    freeze,
    gradual_unfreezing,
    mark_frozen,
    matching_parameters,
    merge_lora,
    noisy_tune,
)
from trainer.model.gradient_checkpointing import find_blocks
from trainer.model.pretrained_folder import read_run_weights
from trainer.model.weights import fit_weights, mismatch_warnings
from trainer.model.weights_file import load_weights_file
from trainer.protocols import (
    Batching,
    HasArchitecture,
    HasCausality,
    HasLossHead,
    HasPackingSupport,
    LanguageModelTask,
    Loss,
    Task,
    TaskInfo,
)
from trainer.prune.masks import Masks, measure_sparsity, select_parameters, total_sparsity
from trainer.weights_folder import find_tokenizer

logger = logging.getLogger(__name__)

ARCHITECTURE = "model.json"
"""The document of a checkpoint from which a pretrained model is rebuilt without its original files."""


def build_model(job: TrainJob, task: Task, snapshot: Snapshot | None, loss: Loss | None) -> nn.Module:
    """Build the model on the CPU.

    Args:
        job: The checked config.
        task: The fitted task.
        snapshot: The checkpoint whose weights will be loaded into the model, so that no initial weights are read; None
            for a new run.
        loss: The loss; if it has a head of its own, the model returns the features that the head reads.

    Raises:
        ConfigError: The model cannot be built from this config.
    """
    info = replace(task.info(), num_outputs=loss.in_features) if isinstance(loss, HasLossHead) else task.info()
    stored = {"architecture": snapshot.json(ARCHITECTURE)} if snapshot and ARCHITECTURE in snapshot.documents else {}
    sized = {"model": job.model, "task": info.arguments(), ARCHITECTURE: stored}
    with bounded_build("model", snapshot, sized):
        return _build(job, task, info, info.arguments() | stored, is_new=snapshot is None)


def _build(job: TrainJob, task: Task, info: TaskInfo, arguments: Document, *, is_new: bool) -> nn.Module:
    model: nn.Module = instantiate("model", option_keys(job.model, ModelKeys), **arguments)
    settings = ModelKeys(**{key: value for key, value in job.model.items() if key in ModelKeys.__dataclass_fields__})
    tokenizer = job.task.get("tokenizer")
    if is_new and settings.weights and tokenizer and tokenizer == find_tokenizer(settings.weights):
        logger.info("task.tokenizer=%s: the tokenizer that model.weights were trained with", tokenizer)
    with in_group("model"):
        if is_new:
            _initialize(model, settings, job.seed, task, info)
        return _adapt(model, settings, task, info)


def _initialize(model: nn.Module, settings: ModelKeys, seed: int, task: Task, info: TaskInfo) -> None:
    """Load `model.weights` into a new model and add the noise of `model.noisy_tune`."""
    if settings.weights is not None:
        weights = (
            read_run_weights(model, settings.weights)
            or _read_checkpoint(Path(expand_home(settings.weights)))
            or load_weights_file(settings.weights)
        )
        report = fit_weights(model, weights, settings.weights_rename, settings.weights_ignore)
        logger.info("model.weights=%s: %s", settings.weights, report)
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name in report.loaded}
        sizes = {"vocab_size": info.vocab_size, "num_outputs": info.num_outputs}
        for warning in mismatch_warnings(settings.weights, shapes, task.artifact_files(), **sizes):
            logger.warning("model.%s", warning)
    if settings.noisy_tune is not None:
        noisy_tune(model, settings.noisy_tune, torch.Generator().manual_seed(seed))


def _read_checkpoint(path: Path) -> Mapping[str, Tensor]:
    """Return the weights of a checkpoint with several files of weights that each contain only a part.

    Args:
        path: The folder of the checkpoint, or a file of the raw or averaged weights in it. Nothing is returned for
            another path.
    """
    folder, name = (path.parent, tensors_name(path.name)) if path.is_file() else (path, "model")
    is_split = (folder / FROZEN_FILE).exists() or not (folder / f"{name}.safetensors").exists()
    if name not in MERGED or not is_split:
        return {}
    if (folder / CHECKPOINT_MANIFEST).is_file():
        return load_folder(folder).named_tensors(name)
    if path.is_file() and (folder / FROZEN_FILE).exists():  # a copy of the files without the checkpoint
        return {**load_weights_file(str(folder / FROZEN_FILE)), **load_weights_file(str(path))}
    return {}


def _adapt(model: nn.Module, settings: ModelKeys, task: Task, info: TaskInfo) -> nn.Module:
    """Freeze parameters, put a head on inner features, and add adapters, as the settings ask for."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if patterns := [entry for entry in settings.freeze if isinstance(entry, str)]:
        names = freeze(model, patterns)
        logger.info("model.freeze: %s frozen", counted(len(names), "parameter", "is"))
    if settings.features:
        if info.output_level == "token":
            problem = "only tasks with one output per sample support features"
            raise ConfigError(format_error("features", problem, value=settings.features))
        model = FeatureExtractor(model, settings.features, info.num_outputs, traced_inputs(task))
    if settings.lora is not None:
        targets = apply_lora(model, **asdict(LoraKeys(**settings.lora)))
        logger.info("model.lora: adapters on %s", counted(len(targets), "layer"))
    mark_frozen(parameter for parameter in trainable if not parameter.requires_grad)
    return model


@dataclass(frozen=True)
class Restored:
    """The model and loss of a checkpoint.

    Attributes:
        model: The model with the selected weights.
        loss: The loss with its own weights, if it has some; None if it was not built.
        weights: The selected weights, `raw` or `ema`.
    """

    model: nn.Module
    loss: Loss | None
    weights: str


def restore_model(
    job: TrainJob, task: Task, snapshot: Snapshot, weights: str, build_loss: Callable[[], Loss | None]
) -> Restored:
    """Rebuild the model and the loss of a checkpoint, on the CPU and on the device of the loss.

    Args:
        job: The stored config.
        task: The fitted task.
        snapshot: The checkpoint.
        weights: `raw`, `ema`, or `auto` for the weights that scored better.
        build_loss: Builds the loss; None if the outputs do not depend on it.

    Raises:
        CheckpointError: The checkpoint does not contain these weights, or they do not fit the model.
    """
    selected, model_file, loss_file = select_weights(snapshot, weights)
    loss = build_loss()
    if loss_file is not None:
        assert isinstance(loss, nn.Module)
        load_weights(loss, snapshot.named_tensors(loss_file))
        check_finite(loss, snapshot, loss_file)
    model = build_model(job, task, snapshot, loss)
    load_weights(model, snapshot.named_tensors(model_file))
    check_finite(model, snapshot, model_file)
    return Restored(model, loss, selected)


def to_device(job: TrainJob, model: nn.Module, device: torch.device) -> nn.Module:
    """Move the model to its device; with `model.channels_last` its 4-d weights are stored as (out, height, width, in).

    Convolutions pass the layout on, so the images need no conversion. Shapes, names and checkpoints stay the same; the
    results are equal up to rounding, because kernels sum in a different order.

    Raises:
        ConfigError: The model has no 2-d convolution.
    """
    if job.model.get("channels_last"):
        if not any(isinstance(module, nn.Conv2d) for module in model.modules()):
            problem = "this model has no 2-d convolution"
            raise ConfigError(format_error("model.channels_last", problem, "Leave it out", value=True))
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # no overload takes only the format
    return model.to(device)


def build_masks(job: TrainJob, model: nn.Module, snapshot: Snapshot | None) -> Masks:
    """Prune the model with the snapshot's masks, or in a new run with masks computed from its initial weights.

    Raises:
        ConfigError: The model cannot be pruned this way.
    """
    if job.prune is None:
        return Masks(model, {})
    if snapshot is not None:
        return Masks(model, snapshot.named_tensors(MASKS))
    masks = prune_model(job.prune, model, job.seed)
    zeros = total_sparsity(measure_sparsity(model, masks.names()))
    logger.info(
        "prune: %d of %d elements (%.1f%%) of %d weights are 0 and stay 0",
        *(zeros.zeros, zeros.size, 100 * zeros.share, len(masks.names())),
    )
    return masks


def prune_model(config: Document, model: nn.Module, seed: int) -> Masks:
    """Prune a model in place, as the group `prune` says.

    Raises:
        ConfigError: The model cannot be pruned this way.
    """
    # The head on inner features is new and takes the place of the model's own head, so it is not pruned.
    prefix, backbone = ("backbone.", model.backbone) if isinstance(model, FeatureExtractor) else ("", model)
    assert isinstance(backbone, nn.Module)
    compute_masks = instantiate("prune", option_keys(dict(config), PruneKeys), seed=seed)
    with in_group("prune"):
        parameters = select_parameters(backbone, config.get("targets"))
        # On the CPU, so that random masks do not depend on the device.
        weights = {f"{prefix}{name}": parameter.detach().cpu() for name, parameter in parameters.items()}
        kept: Mapping[str, Tensor] = compute_masks(weights)
    return Masks(model, kept)


def build_unfreeze(
    job: TrainJob, model: nn.Module, loss: Loss, steps_per_epoch: int, total_steps: int
) -> Callable[[int], None]:
    """Build the function of the step that makes parameters trainable when their `model.freeze` entry expires.

    Args:
        job: The checked config.
        model: The model with the parameters.
        loss: The loss; its own parameters are never frozen.
        steps_per_epoch: Steps per epoch, for durations in epochs.
        total_steps: Steps of the run, for durations in percent.

    Raises:
        ConfigError: An entry matches nothing, or nothing would be trainable at the start.
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
    with in_group("model"):
        unfreeze = gradual_unfreezing(backbone, pairs)
    starts = {parameter: step for pattern, step in pairs for parameter in matching_parameters(backbone, pattern)}
    modules = [model, loss] if isinstance(loss, nn.Module) else [model]
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    if all(starts.get(parameter, 0) > 0 for parameter in trained):
        problem = "nothing would be trained at the start"
        raise ConfigError(format_error("model.freeze", problem, "Leave something out, such as the head", value=entries))
    return unfreeze


def check_unfreeze(job: TrainJob, model: nn.Module) -> None:
    """Raise ConfigError if an entry of `model.freeze` that expires matches nothing."""
    entries = [(entry["match"], 0) for entry in job.model.get("freeze", []) if not isinstance(entry, str)]
    backbone = model.backbone if isinstance(model, FeatureExtractor) else model
    assert isinstance(backbone, nn.Module)
    with in_group("model"):
        gradual_unfreezing(backbone, entries)


def check_graphs(job: TrainJob, device: torch.device) -> None:
    """Raise ConfigError if the job needs CUDA graphs and the device has none, before the data is read."""
    if job.compile == "graphs" and device.type != "cuda":
        problem = f"graphs needs CUDA, but this machine trains on {device.type}"
        raise ConfigError(format_error("compile", problem, WITHOUT_GRAPHS, value=job.compile))


def compile_model(job: TrainJob, task: Task, model: nn.Module, device: torch.device) -> None:
    """Compile the model for training: its blocks for fixed shapes if batches have them, else as a whole.

    Images and tables have one shape, apart from the number of samples; texts have one with `loader.tokens`, inside the
    blocks, and with `loader.batching=fixed`.

    Raises:
        ConfigError: CUDA graphs need fixed shapes, or a model with a list of blocks.
    """
    budget = job.loader.tokens is not None
    is_fixed = budget or job.loader.batching == "fixed" or task.info().max_length is None
    blocks = find_blocks(model) if is_fixed else []
    if job.compile == "graphs":
        if not is_fixed:
            raise ConfigError(format_error("compile", VARYING_SHAPES, SHAPES_REMEDY, value=job.compile))
        if not blocks:
            problem = "graphs needs a model with a list of blocks"
            raise ConfigError(format_error("compile", problem, WITHOUT_GRAPHS, value=job.compile))
        keep_results_of_graphs(model, blocks)
    dynamic = not is_fixed or (budget and not blocks)
    mode = "reduce-overhead" if job.compile == "graphs" else None
    compile_for_training(blocks or [model], device, dynamic=dynamic, mode=mode)


def architecture_documents(model: nn.Module) -> dict[str, str]:
    """Return the documents from which a checkpoint's model can be rebuilt without its original files."""
    own = model.backbone if isinstance(model, FeatureExtractor) else model
    if not isinstance(own, HasArchitecture):
        return {}
    return {ARCHITECTURE: json.dumps(own.architecture, ensure_ascii=False) + "\n"}


def choose_batching(job: TrainJob, model: nn.Module) -> Batching:
    """Return the layout of the batches: padded instead of packed if the model does not support packed batches."""
    own = model.backbone if isinstance(model, FeatureExtractor) else model
    if job.loader.batching == "packed" and isinstance(own, HasPackingSupport) and not own.packed:
        logger.info("loader.batching: this model does not support packed batches; they are padded")
        return "padded"
    return job.loader.batching


def merge_adapters(job: TrainJob, model: nn.Module) -> nn.Module:
    """Return a copy with the adapters merged into the weights, or the model itself if it has no adapters."""
    if job.model.get("lora") is None:
        return model
    copy = deepcopy(model)
    merge_lora(copy)
    return copy


def check_model(job: TrainJob, model: nn.Module, batches: Batches) -> None:
    """Check that the model takes the batches, sees only the tokens that the task allows, and supports the formats.

    Raises:
        ConfigError: The model does not.
    """
    _check_causality(batches.task, model)
    _check_formats(job, model)
    inputs = batches[BatchIndices(0, (0,))].inputs
    try:
        inspect.signature(model.forward).bind(**inputs)
    except TypeError as error:
        message = format_error(
            "loader.batching",
            f"{job.model['_target_']} does not accept this batch ({error})",
            f"A batch has {', '.join(inputs)}. Padded batches need no special support: set loader.batching=padded",
            value=batches.batching,
        )
        raise ConfigError(message) from error


def _check_causality(task: Task, model: nn.Module) -> None:
    """Check pretrained models, whose class does not tell; `trainer.config` checks the other ones before torch loads."""
    expected = task.causal if isinstance(task, LanguageModelTask) else None
    causal = model.causal if isinstance(model, HasCausality) else None
    if expected is None or causal is None or expected == causal:
        return
    problem = "sees the tokens that it must predict" if expected else "does not see the tokens after a masked token"
    remedy = "Name a GPT-2, or use model=decoder" if expected else "Name a BERT-like model, or use model=text_encoder"
    raise ConfigError(format_error("model.path", problem, remedy))


def _check_formats(job: TrainJob, model: nn.Module) -> None:
    """Check pretrained models, whose family is known only after their files have been read."""
    formats = job.export.get("formats") or []
    if "onnx_cache" in formats and not has_cache(model):
        problem = "this model cannot decode token by token, which onnx_cache needs"
        raise ConfigError(format_error("export.formats", problem, "Leave it out, or name a GPT-2", value=formats))
