"""What can be known of a training job without running it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainer.builders.training import RunOutputs, Training, build_training
from trainer.checkpoint.store import Snapshot
from trainer.checkpoint.tensors import encode
from trainer.config.jobs import TrainJob
from trainer.ema import has_weights
from trainer.loop import MetricSchedule, Run, set_learning_rate, update
from trainer.model.structure import structure
from trainer.protocols import Batch
from trainer.state import TrainState

_NUM_POINTS = 21
_NUM_BATCHES = 20


def dry_run(job: TrainJob, config_text: str, *, trial: bool, depth: int) -> dict[str, Any]:
    """A job as a JSON document; it leaves nothing behind but the encoding cache.

    Args:
        job: The checked config; it is looked at on the CPU, whatever its device.
        config_text: The config as YAML, as it goes into a checkpoint.
        trial: Whether one update of a micro-batch is made, and thrown away, to measure memory and a checkpoint.
        depth: Levels of modules that have a row.
    """
    saved: list[Snapshot] = []
    with ExitStack() as closing:
        outlets = RunOutputs(_Silent(), save=saved.append)
        training = build_training(_on_the_cpu(job), config_text, outlets, None, closing)
        run = training.run
        first = next(run.loader.steps(0, 1))[0]
        document = {
            "data": _data(job, training),
            "steps": _steps(job, training),
            "schedule": _schedule(job, run),
            "model": _model(run, first, depth),
            "optimizer": _optimizer(job, run),
        }
        # Last: it changes the weights.
        activations = _trial(run, training.state, first) if trial else None
        return {
            **document,
            "memory": _memory(run, activations),
            "checkpoint": _checkpoint(job, saved[0] if saved else None),
        }


class _Silent:
    """A report of nothing."""

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        pass


def _on_the_cpu(job: TrainJob) -> TrainJob:
    optimizer = job.optimizer | ({"lr": 1.0} if job.optimizer.get("lr") == "auto" else {})
    loader = replace(job.loader, workers=0, pin_memory=False)
    return replace(job, device="cpu", compile=False, optimizer=optimizer, loader=loader)


def _data(job: TrainJob, training: Training) -> dict[str, Any]:
    checked, task = training.data_report, training.task
    splits = {split: {"rows": rows, **checked.shares.get(split, {})} for split, rows in checked.rows.items()}
    found = {"source": job.data["_target_"], "fingerprint": training.encoded.fingerprint, "splits": splits}
    lengths = task.lengths(training.encoded.splits["train"])
    if lengths is None:
        return found
    quantiles = {"shortest": 0.0, "median": 0.5, "p95": 0.95, "longest": 1.0}
    tokens = {name: int(np.quantile(lengths, share)) for name, share in quantiles.items()}
    return {**found, "tokens": {"epoch": int(lengths.sum()), **tokens, "empty_share": _empty_share(training, lengths)}}


def _empty_share(training: Training, lengths: np.ndarray) -> float | None:
    """The share of positions of the first steps' batches that hold no token."""
    run = training.run
    groups = run.loader.steps(0, min(_NUM_BATCHES, run.total_steps))
    batches = [batch for group in groups for batch in group]
    if not all("input_ids" in batch.inputs for batch in batches):
        return None
    filled = sum(int(lengths[list(batch.ids)].sum()) for batch in batches)
    return 1 - filled / sum(batch.inputs["input_ids"].numel() for batch in batches)


def _steps(job: TrainJob, training: Training) -> dict[str, Any]:
    run, rows = training.run, training.data_report.rows["train"]
    epochs, rest = divmod(run.total_steps, run.steps_per_epoch)
    every = {"log": run.cadence.log, "evaluate": run.cadence.evaluate, "save": run.cadence.save}
    return {
        "batch_size": job.train.batch_size,
        "accumulate": job.train.accumulate,
        "micro_batch": -(-job.train.batch_size // job.train.accumulate),
        "steps_per_epoch": run.steps_per_epoch,
        "last_batch_of_epoch": rows - (run.steps_per_epoch - 1) * job.train.batch_size,
        "total_steps": run.total_steps,
        "epochs": run.total_steps / run.steps_per_epoch,
        "samples": epochs * rows + rest * job.train.batch_size,
        "every": every,
        "times": {name: -(-run.total_steps // steps) for name, steps in every.items()},
    }


def _schedule(job: TrainJob, run: Run) -> dict[str, Any]:
    steps = np.unique(np.linspace(0, run.total_steps - 1, min(run.total_steps, _NUM_POINTS)).astype(np.int64)).tolist()
    base = max(float(group["initial_lr"]) for group in run.optimizer.param_groups)
    measured = job.optimizer.get("lr") == "auto"
    factors = {step: run.schedule(step) for step in steps}
    return {
        "schedule": job.scheduler["_target_"],
        "lr": "auto" if measured else base,
        "follows_scores": isinstance(run.schedule, MetricSchedule),
        "points": [
            {"step": step, "factor": factor, "lr": None if measured else base * factor}
            for step, factor in factors.items()
        ],
    }


def _model(run: Run, batch: Batch, depth: int) -> dict[str, Any]:
    run.model.eval()
    rows = structure(run.model, depth, lambda: run.model(**batch.inputs))
    run.model.train()
    # Its parameters are trained, too.
    learnt = structure(run.loss, depth) if isinstance(run.loss, nn.Module) and has_weights(run.loss) else []
    named = [asdict(row) for row in (*rows, *(replace(row, name=f"loss.{row.name}".rstrip(".")) for row in learnt))]
    return {
        "inputs": {name: list(tensor.shape) for name, tensor in batch.inputs.items()},
        "modules": named,
        "parameters": sum(row["parameters"] for row in named),
        "trainable": sum(row["trainable"] for row in named),
    }


def _optimizer(job: TrainJob, run: Run) -> dict[str, Any]:
    counts: dict[tuple[float, float], int] = {}
    for group in run.optimizer.param_groups:
        kind = float(group["initial_lr"]), float(group.get("weight_decay", 0.0))
        counts[kind] = counts.get(kind, 0) + sum(parameter.numel() for parameter in group["params"])
    auto = job.optimizer.get("lr") == "auto"
    return {
        "optimizer": job.optimizer["_target_"],
        "groups": [
            {"lr": "auto" if auto else lr, "weight_decay": decay, "parameters": count}
            for (lr, decay), count in counts.items()
        ],
    }


def _trial(run: Run, state: TrainState, batch: Batch) -> int:
    """Makes one update and takes a checkpoint; returns the bytes that the backward pass of a micro-batch needs."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in _weights(run.model, run.loss)}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    # Nothing is frozen up to a step, so that memory is that of the end, when all that will be trained is.
    set_learning_rate(run.optimizer, run.schedule(0))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        update(run, 0, [batch])
    state.advance()
    run.save(run, state)
    return sum(kept.values())


def _weights(*modules: object) -> Iterator[Tensor]:
    for module in modules:
        if isinstance(module, nn.Module):
            yield from module.parameters()
            yield from module.buffers()


def _memory(run: Run, activations: int | None) -> dict[str, int | None]:
    """Bytes of what a step holds; without a trial the optimizer's state and the activations are None."""
    averaged = () if run.ema is None else (run.ema.module, None if run.ema.loss is run.loss else run.ema.loss)
    trained = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    state = [value for values in run.optimizer.state.values() for value in values.values() if isinstance(value, Tensor)]
    found = {
        "weights": _bytes(_weights(run.model, run.loss)),
        "gradients": _bytes(parameter for parameter in trained if parameter.requires_grad),
        "optimizer": None if activations is None else _bytes(state),
        "ema": _bytes(_weights(*averaged)),
        "activations": activations,
    }
    return {**found, "total": None if activations is None else sum(value or 0 for value in found.values())}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _checkpoint(job: TrainJob, snapshot: Snapshot | None) -> dict[str, Any]:
    """The sizes of its files, and how many checkpoints are kept: the newest, and the best one besides."""
    kept = job.checkpoint.keep + 1
    if snapshot is None:
        return {"files": None, "bytes": None, "kept": kept}
    files = {name: len(text.encode()) for name, text in snapshot.documents.items()}
    for name, tensors in snapshot.tensors.items():
        files[f"{name}.safetensors"] = sum(memoryview(part).nbytes for part in encode(tensors))
    return {"files": files, "bytes": sum(files.values()), "kept": kept}
