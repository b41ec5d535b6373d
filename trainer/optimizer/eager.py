"""Optimizers that do not load torch's compiler.

Each optimizer of torch imports `torch._dynamo` when it is made and in each step, only to keep the compiler out of some
methods. That import takes longer than hundreds of small training steps. The training loop never compiles an optimizer.
"""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any, TypeVar, cast

import torch

OptimizerType = TypeVar("OptimizerType", bound=torch.optim.Optimizer)

_METHODS = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def eager(optimizer: type[OptimizerType]) -> type[OptimizerType]:
    """Return an optimizer class with the same methods, each without the wrapper that imports the compiler.

    The wrapper of `step` also turns gradients off, unless a step should be differentiable, which no job asks for. Hooks
    and the profiler still see every step: torch wraps `step` again when the class is first used.

    Args:
        optimizer: A class of torch, or one of ours whose `step` turns gradients off itself.
    """
    return cast("type[OptimizerType]", _eager(cast("Any", optimizer)))


@cache
def _eager(optimizer: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in _METHODS}
    step = torch.no_grad()(inspect.unwrap(optimizer.step))
    return type(optimizer.__name__, (optimizer,), {**methods, "step": step, "__doc__": optimizer.__doc__})
