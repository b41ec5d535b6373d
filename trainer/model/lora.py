"""LoRA: low-rank matrices are trained beside weights that stay as they are; by `peft`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from math import isfinite
from typing import Any, Final, Literal

from torch import nn

from trainer.errors import ConfigError, did_you_mean, format_error
from trainer.model.checks import dropout_faults, size_faults

_KEY: Final = "lora"
_ALL: Final = "all-linear"
_HEAD: Final = "head"
_OTHERS: Final = (nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_SHOWN: Final = 4


def apply_lora(
    model: nn.Module, rank: int, alpha: float, dropout: float, targets: Sequence[str] | Literal["all-linear"]
) -> tuple[str, ...]:
    """Adds to each target W the product of two matrices: W x + (alpha / rank) B A x, with A (rank, in), B (out, rank).

    A begins random, B with 0, so the model begins as it was. Then A and B are trained, and nothing else but a linear
    layer of the name `head` that is no target: it is new where a model is fine-tuned. What was frozen of it stays so.

    Names of a target's own parameters change until `merge_lora`: `x.weight` is `x.base_layer.weight`.

    Source: Hu et al. 2022, "LoRA: low-rank adaptation of large language models", https://arxiv.org/abs/2106.09685.

    Args:
        model: Changed in place, with its weights loaded.
        rank: Of the product, at least 1.
        alpha: Its scale is alpha / rank; above 0.
        dropout: Probability, on the input of A.
        targets: Names of modules, whole or from a dot on (`blocks.0.query`, `query`); `all-linear` for all linear
            layers but the head.

    Returns:
        The names of the targets.

    Raises:
        ConfigError: A value is out of range, a name fits no module that has a low-rank form, `peft` is not installed.
    """
    faults = [*size_faults(rank=rank), *dropout_faults(dropout)]
    if not (isfinite(alpha) and alpha > 0):
        faults.append(format_error("alpha", "must be finite and above 0", value=alpha))
    names, unfit = _targets(model, targets)
    if faults or unfit:
        raise ConfigError(*(f"{_KEY}.{fault}" for fault in [*faults, *unfit]))
    peft = _peft()
    head = getattr(model, _HEAD, None)
    kept = []
    if isinstance(head, nn.Linear) and _HEAD not in names:
        kept = [parameter for parameter in head.parameters() if parameter.requires_grad]
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(names), bias="none")
    peft.inject_adapter_in_model(config, model)
    for parameter in kept:
        parameter.requires_grad_(True)
    return names


def merge_lora(model: nn.Module) -> None:
    """Adds the products to their weights, in place: the modules, names and shapes of before `apply_lora` are back.

    What it computes in evaluation mode stays the same to rounding. A model without LoRA stays as it is.

    Raises:
        ConfigError: The merged weights are not finite.
    """
    adapted = [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]
    for name, module in adapted:
        layer: Any = module
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise ConfigError(format_error(_KEY, f"{name} cannot be merged ({error})")) from error
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, layer.get_base_layer())


def _targets(model: nn.Module, targets: Sequence[str] | Literal["all-linear"]) -> tuple[tuple[str, ...], list[str]]:
    """The whole names of the targets, and a message for each that is none."""
    modules = {name: module for name, module in model.named_modules() if name}
    able = [name for name, module in modules.items() if _is_linear(module) or isinstance(module, _OTHERS)]
    if targets == _ALL:
        names = tuple(name for name in able if _is_linear(modules[name]) and not _is_output(model, name))
        return names, [] if names else [
            format_error("targets", "the model has no linear layers but its head", value=_ALL)
        ]
    if isinstance(targets, str) or not targets:
        return (), [format_error("targets", "must be a list of module names, or all-linear", value=targets)]
    found: dict[str, None] = {}
    faults = []
    ends = sorted({end for name in able for end in (name.rpartition(".")[2], name) if not end.isdecimal()})
    for target in targets:
        fitting = [name for name in able if name == target or name.endswith(f".{target}")]
        found |= dict.fromkeys(fitting)
        if not fitting:
            there = any(name == target or name.endswith(f".{target}") for name in modules)
            inside = [name for name in able if f".{target}." in f".{name}"]
            problem = "is no linear layer, embedding or convolution" if there else "the model has no such module"
            remedy = f"In it are {', '.join(inside[:_SHOWN])}" if inside else did_you_mean(target, ends)
            faults.append(format_error("targets", problem, remedy, value=target))
    return tuple(found), faults


def _is_linear(module: nn.Module) -> bool:
    # transformers' Conv1D, of GPT-2, is a linear layer; the output of torch's attention is one that is never called.
    known = type(module).__module__ == "transformers.pytorch_utils" and type(module).__name__ == "Conv1D"
    return known or (
        isinstance(module, nn.Linear) and not isinstance(module, nn.modules.linear.NonDynamicallyQuantizableLinear)
    )


def _is_output(model: nn.Module, name: str) -> bool:
    return name == _HEAD or name.startswith(f"{_HEAD}.")


def _peft() -> Any:
    try:
        return import_module("peft")
    except ImportError as error:
        remedy = "Install it: pip install trainer[lora]"
        raise ConfigError(
            format_error(_KEY, f"needs the package peft, which cannot be imported ({error})", remedy)
        ) from error
