"""Capture the complete state of a run in a snapshot, and restore it: weights, EMA, optimizer, scaler, RNG, position."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoint.optimizer_state import capture_optimizer, read_own_rows, restore_optimizer
from trainer.checkpoint.rng_state import capture_rng_state, restore_rng_state
from trainer.checkpoint.shards import Rows, Shard
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.tensors import is_equal
from trainer.display import list_some
from trainer.distributed.sharding import Sharding, first_row, is_sharded, own_rows
from trainer.errors import CheckpointError, format_error
from trainer.layout import STATE
from trainer.model.finetuning import is_frozen
from trainer.model.weights import not_finite
from trainer.protocols import MetricSchedule
from trainer.run import Run
from trainer.state import TrainState

MASKS = "masks"
"""The tensors of a checkpoint that mark the weights that are kept, if some are pruned."""

_MAX_LISTED = 5
"""Tensors that do not fit are listed only up to this number: a stranger's config may describe thousands."""


def current_versions() -> dict[str, str]:
    """Return the versions of the software that may change the bits of a run; Triton compiles for GPUs."""
    return dict(_versions())


@cache  # each look reads files of the installed packages, and every checkpoint records the versions
def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), **{name: version(name) for name in ("torch", "numpy")}}
    with suppress(PackageNotFoundError):
        versions["triton"] = version("triton")
    return versions


def describe_other_versions(recorded: Mapping[str, str]) -> str:
    """Return the versions that a checkpoint records and that differ from this process's; empty if there are none.

    Checkpoints of earlier versions do not record Triton.
    """
    current = current_versions()
    return ", ".join(
        f"{name} {old} then, {current.get(name, 'none')} now"
        for name, old in recorded.items()
        if current.get(name) != old
    )


def describe_machine(device: torch.device) -> dict[str, int | str]:
    """Return the threads and the processor of this process: with others, sums may be rounded differently."""
    cpu = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    return {"threads": torch.get_num_threads(), "processor": name}


def capture(run: Run, state: TrainState) -> Snapshot:
    """Return the state of a run between two steps; the tensors are shared with the run."""
    optimizer_tensors, optimizer_scalars = capture_optimizer(run.optimizer)
    tensors: dict[str, Mapping[str, Tensor]] = {"model": run.model.state_dict(), "optimizer": optimizer_tensors}
    tensors |= {name: module.state_dict() for name, module in _other_modules(run).items()}
    if masks := run.masks.state_dict():
        tensors[MASKS] = masks
    train = state.state_dict()
    document = {
        "score": train["score"],
        "train": train,
        "ema": None if run.ema is None else run.ema.state_dict(),
        "schedule": run.schedule.state_dict() if isinstance(run.schedule, MetricSchedule) else None,
        "precision": run.precision.state_dict(),
        "optimizer": optimizer_scalars,
        "generators": capture_rng_state(devices=not run.rng.keyed),
        "data": run.data_fingerprint,
        "versions": current_versions(),
    }
    if run.loader.accumulate != run.loader.requested:
        document["accumulate"] = {"requested": run.loader.requested, "used": run.loader.accumulate}
    documents = {STATE: json.dumps(document, indent=1) + "\n", **run.documents}
    if run.sharding is None:
        return Snapshot(state.step, tensors, documents, frozen=_frozen_names(run.model, tensors))
    # Averages keep their own rows: whether all rows are equal would have to be agreed on.
    frozen = _frozen_names(run.model, {})
    return _own_part(Snapshot(state.step, tensors, documents, frozen=frozen), run.sharding)


def _frozen_names(model: nn.Module, tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, frozenset[str]]:
    """Return the names of the frozen tensors of the model, and of those that the averaged model has in equal bits."""
    state = model.state_dict(keep_vars=True)
    names = frozenset(name for name, tensor in state.items() if is_frozen(tensor))
    if not names:
        return {}
    averaged = tensors.get("ema", {})
    # Averaging equal values turns -0.0 into 0.0, so a weight with such a value is stored for both models.
    equal = frozenset(name for name in names if name in averaged and is_equal(averaged[name], tensors["model"][name]))
    return {"model": names, "ema": equal}


def _own_part(snapshot: Snapshot, sharding: Sharding) -> Snapshot:
    """Return the part of a snapshot that this process saves: its rows; the first process all other tensors too."""
    tensors: dict[str, dict[str, Tensor]] = {}
    rows: dict[str, dict[str, Rows]] = {}
    for file, named in snapshot.tensors.items() if sharding.is_first_copy else ():
        own = {name: each.detach() for name, each in named.items() if is_sharded(each) or sharding.index == 0}
        tensors[file] = {name: own_rows(each) for name, each in own.items()}
        rows[file] = {name: Rows(first_row(each), tuple(each.shape)) for name, each in own.items() if is_sharded(each)}
    return replace(snapshot, tensors=tensors, shard=Shard(sharding.index, sharding.count, rows))


def restore(run: Run, state: TrainState, snapshot: Snapshot) -> None:
    """Restore the run from a snapshot; it continues with the same bits as if it had never stopped.

    Raises:
        CheckpointError: The checkpoint was saved with a different model, optimizer or data.
    """
    document = snapshot.json(STATE)
    if document["data"] != run.data_fingerprint:
        problem = "the data has changed since the checkpoint was saved"
        raise CheckpointError(format_error("data", problem, "Restore the data, or start a new run"))
    with _naming_field("optimizer"):  # before the weights, which its step on trial changes
        restore_optimizer(run.optimizer, snapshot.named_tensors("optimizer"), document["optimizer"])
    for name, module in {"model": run.model, **_other_modules(run)}.items():
        load_weights(module, snapshot.named_tensors(name))
        check_finite(module, snapshot, name)
    with _naming_field("ema"):
        if run.ema is not None:
            run.ema.load_state_dict(document["ema"])
    with _naming_field("schedule"):
        if isinstance(run.schedule, MetricSchedule):
            run.schedule.load_state_dict(document["schedule"])
    with _naming_field("precision"):
        run.precision.load_state_dict(document["precision"])
    with _naming_field("accumulate"):
        accumulate = document.get("accumulate")
        if accumulate is not None and accumulate["requested"] == run.loader.requested:
            run.loader.accumulate = accumulate["used"]
    with _naming_field("train"):
        state.load_state_dict(document["train"])
    # Last: building and loading may have drawn random numbers.
    with _naming_field("generators"):
        restore_rng_state(document["generators"])


@contextmanager
def _naming_field(field: str) -> Iterator[None]:
    """Turn the error of a part that cannot load its state into a `CheckpointError` that names the state's field."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), "")
        problem = f"cannot be restored ({type(error).__name__}: {reason})"
        raise CheckpointError(format_error(f"{STATE}: {field}", problem, "Use another checkpoint")) from error


def is_keyed(snapshot: Snapshot) -> bool:
    """Return whether a run draws its random numbers by step and piece; runs of earlier versions did not."""
    return "torch" not in snapshot.json(STATE)["generators"]


def _other_modules(run: Run) -> dict[str, nn.Module]:
    """Return the modules other than the model that a checkpoint stores, by the names of their files."""
    modules = run.modules()
    del modules["model"]
    # Most losses are modules without weights or buffers.
    return {name: module for name, module in modules.items() if name != "loss" or module.state_dict()}


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load weights that must match exactly.

    Raises:
        CheckpointError: A name or a shape differs.
    """
    own = module.state_dict()
    if any(map(is_sharded, own.values())):
        _load_rows(own, tensors)
        return
    try:
        module.load_state_dict(dict(tensors), strict=True)
    except RuntimeError as error:
        _, *problems = [" ".join(line.split()) for line in str(error).splitlines()]
        raise CheckpointError(
            f"the checkpoint's weights do not fit the model: {list_some(problems, _MAX_LISTED, ' ')}"
        ) from error


def check_finite(module: nn.Module, snapshot: Snapshot, file: str) -> None:
    """Check that weights that were loaded are numbers: a run saves no others.

    Args:
        module: The module with the weights.
        snapshot: The checkpoint.
        file: The name of their tensors in it, such as `model`.

    Raises:
        CheckpointError: Some are not; names the file and the first tensor.
    """
    own = {name: own_rows(parameter.detach()) for name, parameter in module.named_parameters()}
    if names := not_finite(own):
        path = snapshot.find_file(file, names[0])
        problem = f"contains NaN or an infinite number in {names[0]}, which no run saves"
        raise CheckpointError(format_error(path, problem, "Use another checkpoint"))


@torch.no_grad()
def _load_rows(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Load the rows that this process stores; only these are read."""
    problems = [f"missing {name}" for name in own if name not in tensors]
    problems += [f"unexpected {name}" for name in tensors if name not in own]
    for name, tensor in own.items():
        if name in tensors:
            rows = read_own_rows(tensors, name, tensor)
            if rows is None:
                problems.append(f"{name} has another shape than {tuple(tensor.shape)}")
            else:
                own_rows(tensor).copy_(rows)
    if problems:
        raise CheckpointError(f"the checkpoint's weights do not fit the model: {list_some(problems, _MAX_LISTED, ' ')}")


def select_weights(snapshot: Snapshot, weights: str) -> tuple[str, str, str | None]:
    """Select the `raw` or the `ema` weights of a checkpoint; `auto` selects those that scored better.

    Returns:
        The selected weights' name, and the names of the model's tensors and, if it has some, of the loss's.

    Raises:
        CheckpointError: The checkpoint contains no averaged weights.
    """
    score: dict[str, Any] | None = snapshot.json(STATE)["score"]
    if weights == "auto":
        weights = score["weights"] if score else "raw"
    if weights == "ema" and "ema" not in snapshot.tensors:
        raise CheckpointError(
            format_error("weights", "the run has no averaged weights", "Use weights=raw", value="ema")
        )
    averaged = weights == "ema"
    losses = ("ema_loss", "loss") if averaged else ("loss",)
    return weights, "ema" if averaged else "model", next((name for name in losses if name in snapshot.tensors), None)
