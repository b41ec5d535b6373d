"""Parameters that are not trained: for good, or up to a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Final, cast

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trainer.errors import format_error, raise_if_any

_KEY: Final = "freeze"
_SHOWN: Final = 3


def freeze(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Takes the parameters that fit a pattern out of training, for good.

    A pattern fits whole names of parameters, with `*` for any characters (`blocks.0.*`, `*embedding*`), or names of
    modules (`blocks.0`), which stand for all parameters in them. A parameter with several names (tied weights) is
    frozen when one of them fits.

    The statistics of a batch norm that is frozen with all its parameters, or, where it has none, with all parameters of
    the module around it, do not move either: it stays in evaluation mode, whatever `model.train()` is called.

    Args:
        model: Changed in place.
        patterns: Patterns of names.

    Returns:
        The names of the parameters that fit.

    Raises:
        ConfigError: A pattern fits nothing.
    """
    found = [fitting(model, pattern) for pattern in patterns]
    faults = [_no_fit(model, pattern) for pattern, parameters in zip(patterns, found, strict=True) if not parameters]
    raise_if_any(*faults)
    frozen = {id(parameter) for parameters in found for parameter in parameters}
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
    _hold_norms(model)
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in frozen)


def gradual(model: nn.Module, entries: Sequence[tuple[str, int]]) -> Callable[[int], None]:
    """A function of the step that freezes parameters before a step of theirs, and trains them from it on.

    What it does depends on the step alone, not on those before it, so a run that is resumed needs no more than to call
    it. It does something only where the step crosses that of an entry. To make it changes nothing: the optimizer is to
    know all parameters; those without a gradient it passes over.

    Batch norms are held as by `freeze`, as long as their parameters are frozen.

    Source: Howard and Ruder 2018, "Universal language model fine-tuning for text classification",
    https://arxiv.org/abs/1801.06146, section 3.3.

    Args:
        model: Its parameters that are frozen by now stay so for good.
        entries: Patterns as those of `freeze`, each with the updates done when its parameters begin to train. Of
            several patterns that fit a parameter the last one holds.

    Raises:
        ConfigError: A pattern fits nothing, or frozen parameters only; a step is negative.
    """
    faults = []
    starts: dict[nn.Parameter, int] = {}
    for pattern, step in entries:
        parameters = fitting(model, pattern)
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        if step < 0:
            faults.append(format_error(_KEY, f"the step of {pattern} must be at least 0", value=step))
        if not parameters:
            faults.append(_no_fit(model, pattern))
        elif not trained:
            faults.append(format_error(_KEY, "fits parameters only that are frozen for good", value=pattern))
        starts |= dict.fromkeys(trained, step)
    raise_if_any(*faults)
    steps = sorted(set(starts.values()))
    done: int | None = None

    def thaw(step: int) -> None:
        nonlocal done
        passed = sum(start <= step for start in steps)
        if passed == done:
            return
        for parameter, start in starts.items():
            parameter.requires_grad_(start <= step)
        _hold_norms(model)
        done = passed

    return thaw


class _Held:
    """Goes before a batch norm's class: while `held` is true, the norm cannot be put into training mode."""

    held: bool

    def train(self, mode: bool = True) -> nn.Module:
        return cast(nn.Module, super().train(mode and not self.held))  # type: ignore[misc]  # that of the norm


@cache
def _held_class(norm: type[Any]) -> type[Any]:
    # Under the norm's own name: what tells modules apart by it, or prints them, sees what it saw.
    return type(norm.__name__, (_Held, norm), {"__module__": norm.__module__, "__doc__": norm.__doc__})


def _hold_norms(model: nn.Module) -> None:
    for norm, frozen in _norms(model, frozen=False):
        if frozen == getattr(norm, "held", False):
            continue
        if not isinstance(norm, _Held):
            # No hook is called by `train`, and a method set on the instance is what copies and traces trip over.
            norm.__class__ = _held_class(cast(Any, type(norm)))
        cast(_Held, norm).held = frozen
        norm.train(model.training)


def _norms(module: nn.Module, *, frozen: bool) -> Iterator[tuple[nn.Module, bool]]:
    """Norms that keep statistics, each with whether it is frozen; `frozen` says so of the module around."""
    parameters = list(module.parameters())
    if parameters:
        frozen = not any(parameter.requires_grad for parameter in parameters)
    if isinstance(module, _NormBase) and module.running_mean is not None:
        yield module, frozen
    for child in module.children():
        yield from _norms(child, frozen=frozen)


def fitting(model: nn.Module, pattern: str) -> list[nn.Parameter]:
    """The parameters that a pattern fits: by one of their names, or by one of a module that they are in."""
    found = [
        parameter for name, parameter in model.named_parameters(remove_duplicate=False) if fnmatchcase(name, pattern)
    ]
    for name, module in model.named_modules(remove_duplicate=False):
        if name and fnmatchcase(name, pattern):
            found += module.parameters()
    return list(dict.fromkeys(found))


def _no_fit(model: nn.Module, pattern: str) -> str:
    modules = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
    names = [*modules, *(name for name, _ in model.named_parameters())]
    near = get_close_matches(pattern.strip("*").strip("."), names, n=_SHOWN, cutoff=0.5)
    top = [name for name, _ in model.named_children() if name in modules]
    remedy = f"Near it: {', '.join(near)}" if near else f"There are {', '.join(top or names[:_SHOWN])}"
    return format_error(_KEY, "fits no parameter", remedy, value=pattern)
