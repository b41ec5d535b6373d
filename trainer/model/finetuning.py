"""Methods that change a loaded model before fine-tuning: freezing, LoRA and NoisyTune."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from typing import Any, Final, Literal, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from trainer.constraints import BelowOne, Count, NonNegative, Positive
from trainer.constraints.values import value_problems
from trainer.errors import ConfigError, did_you_mean, format_error, install, raise_if_any

_FREEZE: Final = "freeze"
_LORA: Final = "lora"
_ALL_LINEAR: Final = "all-linear"
_HEAD: Final = "head"
_MARK: Final = "is_frozen_for_the_run"
_ADAPTABLE: Final = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Modules other than linear layers that LoRA can adapt."""

_SHOWN: Final = 4


# Freezing


def freeze(model: nn.Module, patterns: Sequence[str]) -> tuple[str, ...]:
    """Freeze the parameters that match a pattern for the whole run.

    A pattern matches whole parameter names, with `*` for any characters (`blocks.0.*`, `*embedding*`), or module names
    (`blocks.0`), which stand for all parameters in the module. A parameter with several names (tied weights) is frozen
    if one of its names matches.

    The running statistics of a batch norm are frozen together with all its parameters, or, if it has none, with all
    parameters of the enclosing module: the norm stays in evaluation mode even after `model.train()`.

    Args:
        model: Changed in place.
        patterns: Patterns of names.

    Returns:
        The names of the frozen parameters.

    Raises:
        ConfigError: A pattern matches nothing.
    """
    matches = [matching_parameters(model, pattern) for pattern in patterns]
    problems = [no_match(model, pattern) for pattern, match in zip(patterns, matches, strict=True) if not match]
    raise_if_any(*problems)
    frozen = {id(parameter) for match in matches for parameter in match}
    for parameter in model.parameters():
        if id(parameter) in frozen:
            parameter.requires_grad_(False)
    _freeze_norms(model)
    return tuple(name for name, parameter in model.named_parameters() if id(parameter) in frozen)


def mark_frozen(parameters: Iterable[nn.Parameter]) -> None:
    """Mark parameters that nothing changes for the rest of the run.

    A mark is needed because a model may itself change parameters without a gradient, as a momentum encoder does.
    """
    for parameter in parameters:
        setattr(parameter, _MARK, True)


def is_frozen(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a parameter with a mark."""
    return isinstance(tensor, nn.Parameter) and not tensor.requires_grad and getattr(tensor, _MARK, False)


def gradual_unfreezing(model: nn.Module, entries: Sequence[tuple[str, int]]) -> Callable[[int], None]:
    """Return a function of the step that freezes parameters before their step and trains them from then on.

    The result depends only on the step, not on earlier calls, so a resumed run simply calls it. It does something only
    if the step crosses the step of an entry. Creating the function changes nothing: the optimizer must know all
    parameters, and it skips those without a gradient.

    Batch norms are frozen as by `freeze`, as long as their parameters are frozen.

    Source: Howard and Ruder 2018, "Universal language model fine-tuning for text classification",
    https://arxiv.org/abs/1801.06146, section 3.3.

    Args:
        model: Parameters that are already frozen stay frozen.
        entries: Patterns as in `freeze`, each with the number of optimizer steps after which its parameters are
            trained. If several patterns match a parameter, the last one applies.

    Raises:
        ConfigError: A pattern matches nothing, or only frozen parameters; a step is negative.
    """
    problems = []
    starts: dict[nn.Parameter, int] = {}
    for pattern, step in entries:
        parameters = matching_parameters(model, pattern)
        trainable = [parameter for parameter in parameters if parameter.requires_grad]
        if step < 0:
            problems.append(format_error(_FREEZE, f"the step of {pattern} must be at least 0", value=step))
        if not parameters:
            problems.append(no_match(model, pattern))
        elif not trainable:
            problems.append(format_error(_FREEZE, "matches only parameters that are always frozen", value=pattern))
        starts |= dict.fromkeys(trainable, step)
    raise_if_any(*problems)
    steps = sorted(set(starts.values()))
    applied: int | None = None

    def unfreeze(step: int) -> None:
        nonlocal applied
        passed = sum(start <= step for start in steps)
        if passed == applied:
            return
        for parameter, start in starts.items():
            parameter.requires_grad_(start <= step)
        _freeze_norms(model)
        applied = passed

    return unfreeze


def matching_parameters(model: nn.Module, pattern: str) -> list[nn.Parameter]:
    """Return the parameters that a pattern matches by one of their names, or by the name of a module around them."""
    matches = [
        parameter for name, parameter in model.named_parameters(remove_duplicate=False) if fnmatchcase(name, pattern)
    ]
    for name, module in model.named_modules(remove_duplicate=False):
        if name and fnmatchcase(name, pattern):
            matches += module.parameters()
    return list(dict.fromkeys(matches))


class _Freezable:
    """Precedes a batch norm's class in its bases; while `frozen`, the norm cannot be put into training mode."""

    frozen: bool

    def train(self, mode: bool = True) -> nn.Module:
        return cast(nn.Module, super().train(mode and not self.frozen))  # type: ignore[misc]  # the norm's method


@cache
def _freezable_class(norm: type[nn.Module]) -> type[nn.Module]:
    # Under the norm's own name, for code that distinguishes or prints modules by class name.
    return type(norm.__name__, (_Freezable, norm), {"__module__": norm.__module__, "__doc__": norm.__doc__})


def _freeze_norms(model: nn.Module) -> None:
    for norm, frozen in _norms(model, frozen=False):
        if frozen == (isinstance(norm, _Freezable) and norm.frozen):
            continue
        if not isinstance(norm, _Freezable):
            # `train` calls no hooks, and a method set on the instance breaks copies and traces.
            norm.__class__ = _freezable_class(cast(Any, type(norm)))
        cast(_Freezable, norm).frozen = frozen
        norm.train(model.training)


def _norms(module: nn.Module, *, frozen: bool) -> Iterator[tuple[nn.Module, bool]]:
    """Yield norms with running statistics, and if they are frozen; `frozen` describes the enclosing module."""
    parameters = list(module.parameters())
    if parameters:
        frozen = not any(parameter.requires_grad for parameter in parameters)
    if isinstance(module, _NormBase) and module.running_mean is not None:
        yield module, frozen
    for child in module.children():
        yield from _norms(child, frozen=frozen)


def no_match(model: nn.Module, pattern: str, key: str = _FREEZE) -> str:
    """Return the message about a pattern of a key that matches no parameter of a model."""
    modules = [name for name, module in model.named_modules() if name and next(module.parameters(), None) is not None]
    names = [*modules, *(name for name, _ in model.named_parameters())]
    similar = get_close_matches(pattern.strip("*").strip("."), names, n=3, cutoff=0.5)
    top = [name for name, _ in model.named_children() if name in modules]
    remedy = f"Similar names: {', '.join(similar)}" if similar else f"The model has {', '.join(top or names[:3])}"
    return format_error(key, "matches no parameter", remedy, value=pattern)


# LoRA, by the package peft


def apply_lora(
    model: nn.Module, rank: int, alpha: float, dropout: float, targets: Sequence[str] | Literal["all-linear"]
) -> tuple[str, ...]:
    """Add a low-rank product to each target weight W: W x + (alpha / rank) B A x, with A (rank, in) and B (out, rank).

    A is random and B is 0 at first, so the outputs do not change. From then on only A and B are trained, and a linear
    layer named `head` that is not a target, because it is new in fine-tuning. A frozen head stays frozen.

    Until `merge_lora`, the names of a target's own parameters change: `x.weight` becomes `x.base_layer.weight`.

    Source: Hu et al. 2022, "LoRA: low-rank adaptation of large language models", https://arxiv.org/abs/2106.09685.

    Args:
        model: Changed in place, after its weights were loaded.
        rank: Rank of the product, at least 1.
        alpha: Scale of the product times `rank`; greater than 0.
        dropout: Dropout probability on the input of A, in [0, 1).
        targets: Module names, complete or the last parts (`blocks.0.query`, `query`); `all-linear` for all linear
            layers except the head.

    Returns:
        The names of the targets.

    Raises:
        ConfigError: A value is out of range, a name matches no module that can be adapted, or `peft` is not installed.
    """
    names, problems = _lora_targets(model, targets)
    raise_if_any(
        *value_problems(f"{_LORA}.rank", rank, Count),
        *value_problems(f"{_LORA}.alpha", alpha, Positive),
        *value_problems(f"{_LORA}.dropout", dropout, BelowOne),
        *problems,
    )
    peft = _import_peft()
    head = dict(model.named_children()).get(_HEAD)
    trained = []
    if isinstance(head, nn.Linear) and _HEAD not in names:
        trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(names), bias="none")
    peft.inject_adapter_in_model(config, model)
    for parameter in trained:
        parameter.requires_grad_(True)
    return names


def merge_lora(model: nn.Module) -> None:
    """Add the low-rank products to their weights in place, which restores the modules, names and shapes.

    The outputs in evaluation mode stay the same up to rounding. A model without LoRA does not change.

    Raises:
        ConfigError: The merged weights are not finite.
    """
    adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    for name, module in adapted:
        layer: Any = module
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise ConfigError(format_error(_LORA, f"{name} cannot be merged ({error})")) from error
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _lora_targets(
    model: nn.Module, targets: Sequence[str] | Literal["all-linear"]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the complete names of the targets, and a message for each invalid one."""
    key = f"{_LORA}.targets"
    modules = {name: module for name, module in model.named_modules() if name}
    adaptable = [name for name, module in modules.items() if _is_linear(module) or isinstance(module, _ADAPTABLE)]
    if targets == _ALL_LINEAR:
        names = tuple(name for name in adaptable if _is_linear(modules[name]) and not _is_in_head(name))
        problem = "the model has no linear layers except its head"
        return names, [] if names else [format_error(key, problem, value=_ALL_LINEAR)]
    if isinstance(targets, str) or not targets:
        return (), [format_error(key, "must be a list of module names, or all-linear", value=targets)]
    matches: dict[str, None] = {}
    problems = []
    ends = sorted({end for name in adaptable for end in (name.rpartition(".")[2], name) if not end.isdecimal()})
    for target in targets:
        matching = [name for name in adaptable if name == target or name.endswith(f".{target}")]
        matches |= dict.fromkeys(matching)
        if not matching:
            exists = any(name == target or name.endswith(f".{target}") for name in modules)
            inside = [name for name in adaptable if f".{target}." in f".{name}"]
            problem = "is no linear layer, embedding or convolution" if exists else "the model has no such module"
            remedy = f"It contains {', '.join(inside[:_SHOWN])}" if inside else did_you_mean(target, ends)
            problems.append(format_error(key, problem, remedy, value=target))
    return tuple(matches), problems


def is_conv1d(module: nn.Module) -> bool:
    """Return whether a module is transformers' `Conv1D`, the class of the linear layers of GPT-2."""
    return type(module).__module__ == "transformers.pytorch_utils" and type(module).__name__ == "Conv1D"


def _is_linear(module: nn.Module) -> bool:
    # The output layer of torch's attention is never called itself.
    return is_conv1d(module) or (
        isinstance(module, nn.Linear) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    )


def _is_in_head(name: str) -> bool:
    return name == _HEAD or name.startswith(f"{_HEAD}.")


def _import_peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        problem = f"needs the package peft, which cannot be imported ({error})"
        raise ConfigError(format_error(_LORA, problem, install("lora"))) from error


# NoisyTune


@torch.no_grad()
def noisy_tune(model: nn.Module, strength: float, generator: torch.Generator) -> None:
    """Add uniform noise to each parameter W in proportion to its standard deviation: W + U(-s/2, s/2) * std(W).

    U is drawn per element, s is the strength, and std is the unbiased standard deviation of the elements of W. So
    constant parameters do not change: new norms and biases, unused embeddings. A parameter with several names (tied
    weights) gets its noise once; buffers get none.

    Source: Wu et al. 2022, "NoisyTune: a little noise can help you finetune pretrained language models better",
    https://arxiv.org/abs/2202.12024; the authors recommend strengths of 0.1 to 0.15.

    Args:
        model: Changed in place, on any device.
        strength: Width of the noise in standard deviations, at least 0.
        generator: A generator on the CPU, the only source of randomness, so the noise is the same on every device.

    Raises:
        ConfigError: The strength is out of range.
    """
    raise_if_any(*value_problems("noisy_tune", strength, NonNegative))
    if strength == 0:
        return
    for parameter in model.parameters():
        # Rounding may give equal elements a nonzero standard deviation, and a single element has none.
        if not parameter.is_floating_point() or parameter.numel() < 2 or (parameter == parameter.flatten()[0]).all():
            continue
        # At least float32: the noise is small compared with the weights.
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        weights = parameter.to(dtype)
        uniform = torch.rand(parameter.shape, generator=generator, dtype=dtype).to(parameter.device)
        parameter.copy_(weights + (uniform - 0.5) * strength * weights.std())
