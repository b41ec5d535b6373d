"""Everything about a training job that can be known without running it: `trainer plan`."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from trainer.builders.training import Training, build_training
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.tensors import encode
from trainer.config.jobs import TrainJob
from trainer.data.batches import BatchPlan, TrainLoader
from trainer.ema import has_weights
from trainer.errors import ConfigError, format_error
from trainer.layout import Document
from trainer.loop import save_checkpoint, set_learning_rate, update_weights
from trainer.model.summary import summarize
from trainer.protocols import Batch, MetricSchedule
from trainer.rank_environment import num_processes
from trainer.ranks import BUCKET_BYTES, Ranks
from trainer.report.console import format_bytes
from trainer.run import Run, RunOutputs
from trainer.sharding import count_shards, find_blocks
from trainer.state import TrainState

logger = logging.getLogger(__name__)

_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""The limits of a group of processes, versions 2 and 1."""
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
    available, own_limit = _available_memory(job.device, devices), _host_limit(1)
    shards = count_shards(job.shard, Ranks(0, devices))
    with ExitStack() as closing:
        training = build_training(_on_cpu(job), config_text, RunOutputs(_NoReport(), saved.append), None, closing)
        run = training.run
        # The first device has the largest share of a micro-batch.
        assert isinstance(run.loader, TrainLoader)
        share, *_ = run.loader.plan.micro_batches(0, job.train.accumulate, 0, devices)
        first = run.loader.batches[share]
        document = {
            "data": _data(job, training),
            "steps": _steps(job, training),
            "devices": _devices(job, run.loader.plan, devices, shards),
            "schedule": _schedule(job, run),
            "model": _model(run, first, depth),
            "optimizer": _optimizer(job, run),
        }
        # Last: both change the weights.
        state, complete_state = _state_bytes(run, (shards, 1))
        certain = _certain(run, state, shards, job.device)
        _refuse_memory(certain, available, devices, shards)
        if trial and sum(_certain(run, complete_state, 1, "cpu").values()) > own_limit:
            logger.warning("trial: skipped, because the complete model does not fit this process")
            trial = False
        activations = _try_update(run, training.state, first) if trial else None
        return {
            **document,
            "memory": _memory(run, certain, activations, devices, shards),
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
    return replace(job, device="cpu", devices=1, shard=False, compile=False, optimizer=optimizer, loader=loader)


def _data(job: TrainJob, training: Training) -> Document:
    report, task = training.data_report, training.task
    splits = {split: {"rows": rows, **report.shares.get(split, {})} for split, rows in report.rows.items()}
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
    steps, rows = training.run.steps, training.data_report.rows["train"]
    epochs, rest = divmod(steps.total, steps.per_epoch)
    intervals = {"log": steps.log_every, "evaluate": steps.eval_every, "save": steps.save_every}
    every = {name: interval for name, interval in intervals.items() if interval is not None}
    return {
        "batch_size": job.train.batch_size,
        "accumulate": job.train.accumulate,
        "micro_batch": -(-job.train.batch_size // job.train.accumulate),
        "steps_per_epoch": steps.per_epoch,
        "last_batch_of_epoch": rows - (steps.per_epoch - 1) * job.train.batch_size,
        "total_steps": steps.total,
        "epochs": steps.total / steps.per_epoch,
        "samples": epochs * rows + rest * job.train.batch_size,
        "every": every,
        "times": {name: -(-steps.total // interval) for name, interval in every.items()},
    }


def _devices(job: TrainJob, plan: BatchPlan, devices: int, shards: int) -> Document:
    """Return what each device does in a full step and in the last step of an epoch: lists have a value for each one."""
    steps = {"step": 0, "last_step_of_epoch": plan.steps_per_epoch - 1}
    shares = {
        name: [plan.micro_batches(step, job.train.accumulate, rank, devices) for rank in range(devices)]
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


def _try_update(run: Run, state: TrainState, batch: Batch) -> int:
    """Make one update and save a checkpoint; return the bytes that the backward pass of a micro-batch needs."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in _weights(run.model, run.loss)}
    activations: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            activations[storage.data_ptr()] = storage.nbytes()
        return tensor

    # Parameters that are frozen up to a step are trained here, because the run needs the most memory at its end.
    set_learning_rate(run.optimizer, run.schedule(0))
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        update_weights(run, 0, [batch])
    state.advance()
    save_checkpoint(run, state)
    return sum(activations.values())


def _weights(*modules: object) -> Iterator[Tensor]:
    for module in modules:
        if isinstance(module, nn.Module):
            yield from module.parameters()
            yield from module.buffers()


def _state_bytes(run: Run, shards: Sequence[int]) -> list[int]:
    """Return the bytes of the optimizer's state on a device, for each number of shards.

    Updates one parameter at a time, so that this needs little memory. The state is empty afterwards.
    """
    optimizer, totals = run.optimizer, [0] * len(shards)
    set_learning_rate(optimizer, run.schedule(0))
    optimizer.zero_grad(set_to_none=True)
    for parameter in _trained(run):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        state = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
        totals = [total + _bytes(state, count) for total, count in zip(totals, shards, strict=True)]
        parameter.grad = None
        optimizer.state.clear()
    return totals


def _trained(run: Run) -> list[Tensor]:
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    return [parameter for parameter in parameters if parameter.requires_grad]


def _certain(run: Run, state: int, shards: int, device: str) -> dict[str, int]:
    """Return the bytes that a device needs whatever its samples are.

    With shards, this is the first device, which has the most rows.
    """
    averaged = () if run.ema is None else (run.ema.module, None if run.ema.loss is run.loss else run.ema.loss)
    weights = _bytes(_weights(run.model, run.loss), shards)
    average = _bytes(_weights(*averaged), shards)
    certain = {"weights": weights, "gradients": _bytes(_trained(run), shards), "optimizer": state, "ema": average}
    # On a CPU, the copies that are being written are in the same memory.
    return certain | ({"saving": weights + state + average} if _is_cpu(device) else {})


def _refuse_memory(certain: Mapping[str, int], available: int | None, devices: int, shards: int) -> None:
    """Refuse a job that cannot fit, whatever its batches are.

    Raises:
        ConfigError: It does not fit.
    """
    needed = sum(certain.values())
    if available is None or needed <= available:
        return
    parts = ", ".join(f"{name} {format_bytes(value)}" for name, value in certain.items() if value)
    problem = f"a device needs {format_bytes(needed)} ({parts}), but has {format_bytes(available)}"
    if shards == 1:
        key, remedy = "shard", "Set shard=true" if devices > 1 else "Set devices=N shard=true"
    else:
        key, remedy = "devices", "Use more devices"
    smaller = ", or optimizer=sgd" if certain["optimizer"] > certain["gradients"] else ""
    smaller += ", or ema.decay=null" if certain["ema"] else ""
    raise ConfigError(format_error(key, problem, f"{remedy}, or a smaller model{smaller}"))


def _memory(
    run: Run, certain: Mapping[str, int], activations: int | None, devices: int, shards: int
) -> dict[str, int | None]:
    """Return the bytes that a step needs on a device; without a trial, the activations and the total are None."""
    document: dict[str, int | None] = {**certain, "activations": activations}
    if shards > 1:
        document["gathered"] = _gathered_bytes(run.model)
    elif devices > 1:
        largest = max((parameter.nbytes for parameter in _trained(run)), default=0)
        document["exchange"] = min(certain["gradients"], BUCKET_BYTES + largest)
    return {**document, "total": None if activations is None else sum(value or 0 for value in document.values())}


def _bytes(tensors: Iterable[Tensor], shards: int = 1) -> int:
    """Return the bytes of tensors; of parameters and of the state of their optimizer, those of the first shard."""
    return sum(tensor.nbytes if tensor.ndim == 0 or shards == 1 else _rows_bytes(tensor, shards) for tensor in tensors)


def _rows_bytes(tensor: Tensor, shards: int) -> int:
    return -(-len(tensor) // shards) * (tensor.nbytes // max(1, len(tensor)))


def _gathered_bytes(model: nn.Module) -> int:
    """Return about the bytes of the complete weights and gradients that a device needs at the same time.

    These are the parameters outside of the blocks, and two blocks: the one that runs and the next one.
    """
    blocks = [sum(parameter.nbytes for parameter in block.parameters()) for block in find_blocks(model)]
    outside = sum(parameter.nbytes for parameter in model.parameters()) - sum(blocks)
    return 2 * (outside + sum(sorted(blocks)[-2:]))


def _is_cpu(name: str) -> bool:
    return name == "cpu" or (name == "auto" and not torch.cuda.is_available())


def _available_memory(name: str, devices: int) -> int | None:
    """Return the bytes that a process of this machine may use on its device; None if they are not known."""
    if _is_cpu(name):
        return _host_limit(devices)
    device = torch.device("cuda" if name == "auto" else name)
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        return None
    return int(torch.cuda.mem_get_info(device)[0])


def _host_limit(devices: int) -> int:
    """Return the bytes that each of `devices` processes of this machine may use."""
    shared = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):  # a group of processes without a limit has the text "max"
            shared.append(int(Path(path).read_text(encoding="ascii")))
    own = []
    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY:
            own.append(max(0, soft - _used_bytes(used)))
    return min([min(shared) // devices, *own])


def _used_bytes(name: str) -> int:
    """Return an amount of memory that Linux reports of this process; 0 on other systems."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0


def _checkpoint(job: TrainJob, snapshot: Snapshot | None) -> Document:
    """Return the sizes of a checkpoint's files and the number of checkpoints kept: the newest ones and the best one."""
    kept = job.checkpoint.keep + 1
    if snapshot is None:
        return {"files": None, "bytes": None, "kept": kept}
    files = {name: len(text.encode()) for name, text in snapshot.documents.items()}
    for name, tensors in snapshot.tensors.items():
        files[f"{name}.safetensors"] = sum(memoryview(part).nbytes for part in encode(tensors))
    return {"files": files, "bytes": sum(files.values()), "kept": kept}
