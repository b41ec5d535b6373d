"""An optimizer's state as tensors and JSON under the names of its parameters, and back, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from trainer.errors import CheckpointError, format_error

# The learning rate is the schedule's; the others say how a step is computed, not what it gives.
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
_SHOWN: Final = 3


def capture_optimizer(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimizer built from named parameters has to remember, without its learning rate.

    Returns:
        The state's tensors themselves (not copies) by `<parameter name>/<state key>`, and all else as JSON.

    Raises:
        CheckpointError: It was built without names, or holds something that neither a tensor nor JSON is.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, parameter, _ in _named(optimizer):
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


def restore_optimizer(optimizer: Optimizer, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Gives an optimizer the state that `capture_optimizer` found, its own learning rate left as it is.

    Raises:
        CheckpointError: The optimizer has other parameters, or groups them otherwise.
    """
    named = list(_named(optimizer))
    stored = [group["names"] for group in document["groups"]]
    _compare(stored, [group["param_names"] for group in optimizer.param_groups])
    for group, found in zip(optimizer.param_groups, document["groups"], strict=True):
        for key, value in found["options"].items():
            group[key] = tuple(value) if isinstance(group.get(key), tuple) else value
    keys: dict[str, list[str]] = {}
    for path in tensors:
        name, _, key = path.rpartition("/")
        keys.setdefault(name, []).append(key)
    optimizer.state.clear()
    for name, parameter, group in named:
        state = dict(document["values"].get(name, {}))
        state.update({key: _place(key, tensors[f"{name}/{key}"], parameter, group) for key in keys.get(name, [])})
        if state:
            optimizer.state[parameter] = state


def _named(optimizer: Optimizer) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    for group in optimizer.param_groups:
        if "param_names" not in group:
            raise CheckpointError(
                format_error("optimizer", "has no parameter names", "Build it from named_parameters()")
            )
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            yield name, parameter, group


def _as_json(name: str, value: Any) -> Any:
    try:
        json.dumps(value)
    except TypeError as error:
        problem = f"a {type(value).__name__} of the optimizer cannot be stored"
        raise CheckpointError(format_error(name, problem, "Tensors, numbers and text of a parameter are")) from error
    return value


def _compare(stored: list[list[str]], present: list[list[str]]) -> None:
    before = {name for names in stored for name in names}
    now = {name for names in present for name in names}
    differences = []
    for what, names in (("missing", before - now), ("unexpected", now - before)):
        if names:
            first = ", ".join(sorted(names)[:_SHOWN])
            differences.append(f"{what} {first}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""))
    if differences:
        problem = f"the checkpoint was written with other parameters: {'; '.join(differences)}"
        raise CheckpointError(format_error("optimizer", problem, "model.weights= starts anew from the weights alone"))
    if stored != present:
        problem = "the checkpoint was written with other groups of the same parameters"
        raise CheckpointError(format_error("optimizer", problem, "Restore the settings that group them"))


def _place(key: str, value: Tensor, parameter: Tensor, group: Mapping[str, Any]) -> Tensor:
    if key == "step":
        # Where torch itself keeps it: on the host, unless the kernel that updates the parameter counts.
        on_device = bool(group.get("fused") or group.get("capturable"))
        return value.to(parameter.device if on_device else "cpu", copy=True)
    if value.shape == parameter.shape:
        # Fused kernels walk through memory: the strides must be the parameter's.
        return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)
    return value.to(parameter.device, copy=True)
