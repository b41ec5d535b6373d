"""The contract that the part of each group must fit, checked when the part is made."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from trainer.errors import ConfigError, format_error
from trainer.protocols import Loss, MetricSchedule, Observer, Schedule, Source, Task, TokenByTokenModel

_CONTRACTS: Mapping[str, type] = {
    "task": Task,
    "data": Source,
    "model": nn.Module,
    "loss": Loss,
    "optimizer": Optimizer,
    "scheduler": Schedule,
    "observers": Observer,
}
"""Protocols, and classes that the part must be an instance of. The parts of other groups are only called."""

_ABILITIES: Mapping[str, Mapping[str, type]] = {
    "scheduler": {"observe": MetricSchedule},
    "model": {"empty_cache": TokenByTokenModel},
}
"""The protocol that a part must fit as a whole if it has this member."""

_RENAMED: Mapping[str, Mapping[str, str]] = {
    "task": {
        "facts": "info",
        "reads": "input_columns",
        "answers": "predictions",
        "inputs_of": "model_inputs",
        "ask": "prediction_rows",
        "further": "extra_rows",
    },
    "data": {"where": "describe_row", "column": "describe_role", "alone": "for_split"},
}
"""Methods by their former names: nothing calls them any more, so an override would be ignored without a word."""

_METHODS = (property, functools.cached_property, classmethod, staticmethod)


def check_contract(group: str, target: str, part: object) -> None:
    """Check that a part has the members that its group needs, and no method under a former name.

    Args:
        group: The name of the group.
        target: The `_target_` of the part, for messages.
        part: The part. None of its properties is computed, because some read all of the data.

    Raises:
        ConfigError: It does not fit.
    """
    name = type(part).__name__
    kind = group.partition(".")[0]
    if kind == "metrics":  # `builders.metrics` checks them, which loads torchmetrics
        return
    contract = _CONTRACTS.get(kind)
    if contract is None or not _is_protocol(contract):
        required: Any = contract or Callable
        if not isinstance(part, required):
            required_name = (
                "a callable" if contract is None else f"an instance of {contract.__module__}.{contract.__name__}"
            )
            problem = f"must make {required_name}, but makes {name}"
            raise ConfigError(format_error(f"{group}._target_", problem, value=target))
        missing = {}
    else:
        missing = {member: contract.__name__ for member in _members(contract) if not _has(part, member)}
    for sign, ability in _ABILITIES.get(group, {}).items():
        if _has(part, sign):
            missing |= {member: ability.__name__ for member in _members(ability) if not _has(part, member)}
    if isinstance(part, nn.Module) and getattr(part.forward, "__name__", "") == "_forward_unimplemented":
        missing["forward"] = "nn.Module"
    renamed = dict(_former_names(group, part))
    if not missing and not renamed:
        return
    undefined = [member for member in missing if member not in renamed.values()]
    remedies = [f"Rename {old} to {new}" for old, new in renamed.items()]
    remedies += [f"Define {', '.join(undefined)}"] if undefined else []
    problems = [f"the class {name} has methods with former names, which nothing calls"] if renamed else []
    if undefined:
        contracts = " and ".join(dict.fromkeys(missing[member] for member in undefined))
        problems.append(f"{name} lacks members of {contracts} (trainer/protocols)")
    raise ConfigError(format_error(f"{group}._target_", "; ".join(problems), ". ".join(remedies), value=target))


def _former_names(group: str, part: object) -> Iterator[tuple[str, str]]:
    """Yield the former and the new name of each method that the user's classes define only under its former name."""
    classes = [cls for cls in type(part).__mro__ if cls.__module__.partition(".")[0] != __name__.partition(".")[0]]
    for old, new in _RENAMED.get(group, {}).items():
        defined = next((vars(cls)[old] for cls in classes if old in vars(cls)), None)
        is_method = callable(defined) or isinstance(defined, _METHODS)
        if is_method and not any(new in vars(cls) for cls in classes):
            yield old, new


def _members(protocol: type) -> list[str]:
    """Return the public members of a protocol and its bases, and `__call__`."""
    names: dict[str, None] = {}
    for cls in reversed(protocol.__mro__):
        if _is_protocol(cls):
            names |= dict.fromkeys([*vars(cls).get("__annotations__", {}), *vars(cls)])
    return [name for name in names if name == "__call__" or not name.startswith("_")]


def _is_protocol(cls: type) -> bool:
    return bool(getattr(cls, "_is_protocol", False)) and cls.__module__ != "typing"


def _has(part: object, member: str) -> bool:
    """Return whether a part has a member; the empty method of a protocol that it inherits from is none."""
    holders = [cls for cls in type(part).__mro__ if member in vars(cls)]
    if any(not _is_protocol(cls) for cls in holders) or member in getattr(part, "__dict__", {}):
        return True
    return not holders and hasattr(part, member)
