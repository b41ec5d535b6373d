"""Everything about a training job that can be known without running it: `trainer plan`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace

import numpy as np
from torch import Tensor, nn

from trainer.builders.memory import (
    LiveTensors,
    available_memory,
    certain_bytes,
    host_limit,
    refuse_what_cannot_fit,
    state_bytes,
    step_bytes,
    weights_of,
)
from trainer.builders.sampling import measure_draws
from trainer.builders.training import Training, build_training
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.tensors import encode
from trainer.config.jobs import TrainJob
from trainer.data.batches import TrainLoader
from trainer.deferred_logits import deferral
from trainer.distributed.environment import num_processes
from trainer.distributed.ranks import Ranks
from trainer.distributed.sharding import count_shards
from trainer.ema import has_weights
from trainer.layout import Document
from trainer.loop import save_checkpoint, set_learning_rate, update_weights
from trainer.model.summary import summarize
from trainer.progress import phase
from trainer.protocols import Batch, MetricSchedule
from trainer.run import Run, RunOutputs
from trainer.state import TrainState

logger = logging.getLogger(__name__)

_NUM_POINTS = 21
"""Points of the schedule's curve."""
_NUM_STEPS = 20
"""First steps whose batches are examined for padding."""


def dry_run(job: TrainJob, config_text: str, *, trial: bool, depth: int) -> Document:
    """Describe a job as a JSON document; only the encoding cache is written.

    Args:
        job: The checked config; it is built on the CPU, whatever its device is.
        config_text: The config as YAML, as checkpoints contain it.
        trial: Make one update with a micro-batch, and discard it, to measure the memory and the size of a checkpoint.
        depth: Levels of modules to list.

    Raises:
        ConfigError: Weights, gradients and the state of the optimizer do not fit a device.
    """
    saved: list[Snapshot] = []
    devices = num_processes(job.devices, job.device)
    # Read before anything is built: a process of the run already uses as much as this one does now.
    available, own_limit = available_memory(job.device, devices), host_limit(1)
    shards = count_shards(job.shard, Ranks(0, devices))
    with ExitStack() as closing:
        training = build_training(_on_cpu(job), config_text, RunOutputs(_NoReport(), saved.append), None, closing)
        run = training.run
        # The first device has the largest share of a micro-batch.
        assert isinstance(run.loader, TrainLoader)
        shares = run.loader.plan.micro_batches(0, run.loader.accumulate, 0, devices)
        first = run.loader.batches[shares[0]]
        document = {
            "data": _data(job, training),
            "steps": _steps(job, training),
            "devices": _devices(run.loader, devices, shards),
            "schedule": _schedule(job, run),
            "model": _model(run, first, depth),
            "optimizer": _optimizer(job, run),
        }
        # Last: both change the weights.
        state, complete_state = state_bytes(run, (shards, 1))
        certain = certain_bytes(run, state, shards, job.device)
        refuse_what_cannot_fit(certain, available, devices, shards)
        complete = certain_bytes(run, complete_state, 1, "cpu")
        if trial and sum(complete.values()) > own_limit:
            logger.warning("trial: skipped, because the complete model does not fit this process")
            trial = False
        activations = None
        if trial:
            # In the second micro-batch, all gradients of the first one exist.
            batches = [first, *(run.loader.batches[share] for share in shares[1:2])]
            with phase("trying a step"):
                peak = _try_update(run, training.state, batches)
            activations = max(0, peak - complete["gradients"] - complete.get("moved", 0))
        return {
            **document,
            "memory": step_bytes(run, certain, activations, devices, shards),
            "memory_available": available,
            "checkpoint": _checkpoint(job, saved[0] if saved else None),
        }


class _NoReport:
    """A report that ignores all events."""

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        pass


def _on_cpu(job: TrainJob) -> TrainJob:
    optimizer = job.optimizer | ({"lr": 1.0} if job.optimizer.get("lr") == "auto" else {})
    loader = replace(job.loader, workers=0, pin_memory=False)
    # The memory of this process says nothing about the memory of the run's device.
    train = replace(job.train, accumulate=1) if job.train.accumulate == "auto" else job.train
    return replace(
        job, device="cpu", devices=1, shard=False, compile=False, optimizer=optimizer, loader=loader, train=train
    )


def _data(job: TrainJob, training: Training) -> Document:
    report, task = training.data_report, training.task
    times = {split: {"from": first, "to": last} for split, (first, last) in report.times.items()}
    splits = {
        split: {"rows": rows, **times.get(split, {}), **report.shares.get(split, {})}
        for split, rows in report.rows.items()
    }
    document = {"source": job.data["_target_"], "fingerprint": training.encoded.fingerprint, "splits": splits}
    lengths = task.lengths(training.encoded.splits["train"])
    if lengths is None:
        return document
    quantiles = {"shortest": 0.0, "median": 0.5, "p95": 0.95, "longest": 1.0}
    tokens = {name: int(np.quantile(lengths, share)) for name, share in quantiles.items()}
    empty_share = _empty_share(training.run, lengths)
    return {**document, "tokens": {"epoch": int(lengths.sum()), **tokens, "empty_share": empty_share}}


def _empty_share(run: Run, lengths: np.ndarray) -> float | None:
    """Return the share of positions without a token in the batches of the first steps; None without tokens."""
    steps = run.loader.steps(0, min(_NUM_STEPS, run.steps.total))
    batches = [batch for micro_batches in steps for batch in micro_batches]
    if not all("input_ids" in batch.inputs for batch in batches):
        return None
    filled = sum(int(lengths[list(batch.ids)].sum()) for batch in batches)
    return 1 - filled / sum(batch.inputs["input_ids"].numel() for batch in batches)


def _steps(job: TrainJob, training: Training) -> Document:
    assert isinstance(training.run.loader, TrainLoader)
    steps, rows = training.run.steps, training.data_report.rows["train"]
    epochs, rest = divmod(steps.total, steps.per_epoch)
    intervals = {"log": steps.log_every, "evaluate": steps.eval_every, "save": steps.save_every}
    every = {name: interval for name, interval in intervals.items() if interval is not None}
    return {
        "batch_size": job.train.batch_size,
        "accumulate": training.run.loader.accumulate,
        "micro_batch": -(-job.train.batch_size // training.run.loader.accumulate),
        "token_budget": _token_budget(training.run),
        "draws": measure_draws(training.run.loader.plan.sampler),
        "passes": dict(zip(("count", "start"), training.run.passes, strict=True)),
        "steps_per_epoch": steps.per_epoch,
        "last_batch_of_epoch": rows - (steps.per_epoch - 1) * job.train.batch_size,
        "total_steps": steps.total,
        "epochs": steps.total / steps.per_epoch,
        "samples": epochs * rows + rest * job.train.batch_size,
        "max_time": job.train.max_time,
        "monitor": {"split": training.run.validation.split, "metric": training.run.validation.monitor},
        "every": every,
        "times": {name: -(-steps.total // interval) for name, interval in every.items()},
    }


def _token_budget(run: Run) -> Document | None:
    """Return the tokens of a micro-batch and the fewest and most micro-batches of the first steps; None without."""
    assert isinstance(run.loader, TrainLoader)
    if run.loader.tokens is None:
        return None
    counts = [len(run.loader.plan.micro_batches(step, 1)) for step in range(min(_NUM_STEPS, run.steps.total))]
    return {"tokens": run.loader.tokens, "micro_batches": [min(counts), max(counts)]}


def _devices(loader: TrainLoader, devices: int, shards: int) -> Document:
    """Return what each device does in a full step and in the last step of an epoch: lists have a value for each one."""
    steps = {"step": 0, "last_step_of_epoch": loader.plan.steps_per_epoch - 1}
    shares = {
        name: [loader.plan.micro_batches(step, loader.accumulate, rank, devices) for rank in range(devices)]
        for name, step in steps.items()
    }
    sizes = [len(piece.ids) for pieces in shares["step"] for piece in pieces]
    return {
        "count": devices,
        "shards": shards,
        "copies": devices // shards,
        "micro_batches": [len(pieces) for pieces in shares["step"]],
        "piece": [min(sizes), max(sizes)],
        "samples": {
            name: [sum(len(piece.ids) for piece in pieces) for pieces in each] for name, each in shares.items()
        },
    }


def _schedule(job: TrainJob, run: Run) -> Document:
    total = run.steps.total
    steps = np.unique(np.linspace(0, total - 1, min(total, _NUM_POINTS)).astype(np.int64)).tolist()
    base = max(float(group["initial_lr"]) for group in run.optimizer.param_groups)
    automatic = job.optimizer.get("lr") == "auto"
    factors = {step: run.schedule(step) for step in steps}
    return {
        "schedule": job.scheduler["_target_"],
        "lr": "auto" if automatic else base,
        "follows_scores": isinstance(run.schedule, MetricSchedule),
        "points": [
            {"step": step, "factor": factor, "lr": None if automatic else base * factor}
            for step, factor in factors.items()
        ],
    }


def _model(run: Run, batch: Batch, depth: int) -> Document:
    run.model.eval()
    with deferral(run.model, deferred=False):
        rows = summarize(run.model, depth, lambda: run.model(**batch.inputs))
    run.model.train()
    # The loss's own parameters are trained too.
    loss_rows = summarize(run.loss, depth) if isinstance(run.loss, nn.Module) and has_weights(run.loss) else []
    named = [asdict(row) for row in (*rows, *(replace(row, name=f"loss.{row.name}".rstrip(".")) for row in loss_rows))]
    return {
        "inputs": {name: list(tensor.shape) for name, tensor in batch.inputs.items()},
        "modules": named,
        "parameters": sum(row["parameters"] for row in named),
        "trainable": sum(row["trainable"] for row in named),
    }


def _optimizer(job: TrainJob, run: Run) -> Document:
    counts: dict[tuple[float, float], int] = {}
    for group in run.optimizer.param_groups:
        key = float(group["initial_lr"]), float(group.get("weight_decay", 0.0))
        counts[key] = counts.get(key, 0) + sum(parameter.numel() for parameter in group["params"])
    auto = job.optimizer.get("lr") == "auto"
    return {
        "optimizer": job.optimizer["_target_"],
        "groups": [
            {"lr": "auto" if auto else lr, "weight_decay": decay, "parameters": count}
            for (lr, decay), count in counts.items()
        ],
    }


def _try_update(run: Run, state: TrainState, micro_batches: list[Batch]) -> int:
    """Make one update and save a checkpoint; return the most bytes of the tensors that the update makes.

    The weights and the state of the optimizer do not count.
    """

    def kept() -> Iterator[Tensor]:
        yield from weights_of(run.model, run.loss)
        for values in run.optimizer.state.values():
            yield from (value for value in values.values() if isinstance(value, Tensor))

    live = LiveTensors(kept)
    # Parameters that are frozen up to a step are trained here, because the run needs the most memory at its end.
    set_learning_rate(run.optimizer, run.schedule(0))
    with live:
        update_weights(run, run.steps.total - 1, micro_batches)
    state.advance()
    save_checkpoint(run, state)
    return live.peak


def _checkpoint(job: TrainJob, snapshot: Snapshot | None) -> Document:
    """Return the sizes of a checkpoint's files and the number of checkpoints kept: the newest ones and the best one."""
    kept = job.checkpoint.keep + 1
    if snapshot is None:
        return {"files": None, "bytes": None, "kept": kept}
    files = {name: len(text.encode()) for name, text in snapshot.documents.items()}
    for name, tensors in snapshot.stored_tensors().items():
        files[f"{name}.safetensors"] = sum(memoryview(part).nbytes for part in encode(tensors))
    return {"files": files, "bytes": sum(files.values()), "kept": kept}
