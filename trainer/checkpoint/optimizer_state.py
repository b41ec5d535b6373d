"""An optimizer's state as tensors and JSON under the names of its parameters, captured and restored bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from inspect import signature
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.checkpoint.tensors import StoredTensors
from trainer.display import list_some
from trainer.distributed.sharding import first_row, is_sharded, own_rows
from trainer.errors import CheckpointError, format_error
from trainer.layout import Document

# The schedule sets the learning rate; the other options choose how a step is computed, not its result.
_NOT_STORED: Final = {
    "params",
    "param_names",
    "lr",
    "initial_lr",
    "fused",
    "foreach",
    "capturable",
    "differentiable",
    "maximize",
}
_MAX_NAMES: Final = 3
"""Parameters that an error message names."""


def capture_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], Document]:
    """Return the state of an optimizer that was built from named parameters, without its learning rate.

    Returns:
        The state's tensors themselves (not copies) by `<parameter name>/<state key>`, and everything else as JSON.

    Raises:
        CheckpointError: The optimizer was built without names, or its state is neither a tensor nor JSON.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, Document] = {}
    for name, parameter, _ in _named_parameters(optimizer):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value
            else:
                values.setdefault(name, {})[key] = _as_json(f"{name}/{key}", value)
    groups = [
        {
            "names": list(group["param_names"]),
            "options": {key: _as_json(key, value) for key, value in group.items() if key not in _NOT_STORED},
        }
        for group in optimizer.param_groups
    ]
    return tensors, {"groups": groups, "values": values}


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], document: Document) -> None:
    """Load a state that `capture_optimizer` returned; the learning rate stays the optimizer's own.

    A step on trial shows whether the optimizer can use the state, so the weights must be loaded afterwards.

    Raises:
        CheckpointError: The optimizer has other parameters, or groups them differently; a tensor has a wrong shape; or
            there is an option that only the config decides.
        Exception: The step on trial failed, with whatever the optimizer raises.
    """
    _load(optimizer, tensors, document)
    _check_options(optimizer)
    _try_step(optimizer)
    _load(optimizer, tensors, document)


def _load(optimizer: Optimizer, tensors: Mapping[str, Tensor], document: Document) -> None:
    named = list(_named_parameters(optimizer))
    stored = [group["names"] for group in document["groups"]]
    _check_names(stored, [group["param_names"] for group in optimizer.param_groups])
    for group, stored_group in zip(optimizer.param_groups, document["groups"], strict=True):
        for key, value in stored_group["options"].items():
            if key in _NOT_STORED:
                raise CheckpointError(format_error(f"optimizer: {key}", "is no state", "Use another checkpoint"))
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    keys: dict[str, list[str]] = {}
    for path in tensors:
        name, _, key = path.rpartition("/")
        keys.setdefault(name, []).append(key)
    optimizer.state.clear()
    for name, parameter, group in named:
        state = dict(document["values"].get(name, {}))
        state.update({key: _place(key, tensors, f"{name}/{key}", parameter, group) for key in keys.get(name, [])})
        if state:
            optimizer.state[parameter] = state


def _try_step(optimizer: Optimizer) -> None:
    """Take a step with gradients of 0; it changes the state and, by the decay, the weights."""
    for parameter in optimizer.state:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for name, parameter, _ in _named_parameters(optimizer):
        if parameter in optimizer.state and not own_rows(parameter.detach()).isfinite().all():
            raise ValueError(f"the state of {name} turns its weights into NaN or infinity")


def _check_options(optimizer: Optimizer) -> None:
    """Raise the error of the optimizer's class for options that it does not accept, such as a factor of 1."""
    accepted = signature(type(optimizer)).parameters
    for group in optimizer.param_groups:
        options = {key: value for key, value in group.items() if key in accepted and key not in _NOT_STORED}
        with suppress(TypeError, AttributeError):  # an optimizer that is made otherwise, such as of two others
            type(optimizer)([torch.nn.Parameter(torch.zeros(1, 1))], **options)


def _named_parameters(optimizer: Optimizer) -> Iterator[tuple[str, Tensor, Document]]:
    for group in optimizer.param_groups:
        if "param_names" not in group:
            raise CheckpointError(
                format_error("optimizer", "has no parameter names", "Build it from named_parameters()")
            )
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            yield name, parameter, group


def _as_json(name: str, value: object) -> Any:
    try:
        json.dumps(value)
    except TypeError as error:
        problem = f"optimizer state of type {type(value).__name__} cannot be stored"
        raise CheckpointError(format_error(name, problem, "Use tensors, numbers and text for it")) from error
    return value


def _check_names(stored: list[list[str]], current: list[list[str]]) -> None:
    before = {name for names in stored for name in names}
    now = {name for names in current for name in names}
    differences = []
    for title, names in (("missing", before - now), ("unexpected", now - before)):
        if names:
            differences.append(f"{title} {list_some(sorted(names), _MAX_NAMES)}")
    if differences:
        problem = f"the checkpoint has other parameters: {'; '.join(differences)}"
        remedy = "Set model.weights= to start a new run from the weights only"
        raise CheckpointError(format_error("optimizer", problem, remedy))
    if stored != current:
        problem = "the checkpoint groups the same parameters differently"
        raise CheckpointError(format_error("optimizer", problem, "Restore the settings that define the groups"))


def read_own_rows(tensors: Mapping[str, Tensor], name: str, like: Tensor) -> Tensor | None:
    """Return the rows of a stored tensor that this process stores of `like`; None if the shapes differ.

    If `like` is not sharded, these are all rows. From `StoredTensors` only these rows are read.
    """
    if (tensors.shape(name) if isinstance(tensors, StoredTensors) else tensors[name].shape) != like.shape:
        return None
    if not is_sharded(like):
        return tensors[name]
    start, count = first_row(like), len(own_rows(like))
    if isinstance(tensors, StoredTensors):
        return tensors.read_rows(name, start, start + count)
    return tensors[name][start : start + count]


def _place(
    key: str, tensors: Mapping[str, Tensor], name: str, parameter: Tensor, group: Mapping[str, object]
) -> Tensor:
    """Return a copy of a state tensor with the device and the strides that the optimizer expects."""
    if key == "step":
        # As in torch: on the host, unless the kernel that updates the parameter counts the steps.
        on_device = bool(group.get("fused") or group.get("capturable"))
        return tensors[name].to(parameter.device if on_device else "cpu", copy=True)
    rows = read_own_rows(tensors, name, parameter)
    if rows is None and group.get("fused"):  # torch's fused kernels do not compare shapes: they write out of bounds
        shapes = f"shape {list(tensors[name].shape)}, but its parameter has {list(parameter.shape)}"
        raise CheckpointError(format_error(f"optimizer: {name}", f"has the {shapes}", "Use another checkpoint"))
    if rows is None:
        return tensors[name].to(parameter.device, copy=True)
    # Fused kernels walk through memory: the strides must equal the parameter's.
    state = torch.empty_like(parameter, dtype=rows.dtype, requires_grad=False)
    own_rows(state).copy_(rows)
    return state
