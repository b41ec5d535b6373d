"""Which weights of a model are pruned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import nn
from torch.nn.modules.conv import _ConvNd

from trainer.errors import ConfigError, did_you_mean, format_error, raise_if_any
from trainer.model.freezing import fitting

_HEAD: Final = "head"
_LAYERS: Final = (nn.Linear, _ConvNd)


def pruned_parameters(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """The weights that are pruned, by name; biases and gains, which have one axis, never are.

    Args:
        model: The model.
        patterns: Of names of parameters, or of modules, which stand for all in them, as in `freezing.freeze`; None for
            the linear layers and convolutions but the head, and what is tied to an embedding.

    Raises:
        ConfigError: A pattern fits no weight, or the model has none but its head.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    if patterns is None:
        chosen = _hidden(model)
        if not chosen:
            remedy = f"Name weights: prune.targets=[{next(iter(named), _HEAD)}]"
            raise ConfigError(
                format_error("targets", "the model has no linear layer or convolution but its head", remedy)
            )
    else:
        found = {pattern: [found for found in fitting(model, pattern) if found.ndim > 1] for pattern in patterns}
        raise_if_any(*(_no_fit(model, pattern) for pattern in patterns if not found[pattern]))
        chosen = {id(parameter) for parameters in found.values() for parameter in parameters}
    return {name: parameter for name, parameter in named.items() if id(parameter) in chosen}


def _hidden(model: nn.Module) -> set[int]:
    chosen = {id(module.weight) for module in model.modules() if isinstance(module, _LAYERS) or _is_conv1d(module)}
    head = getattr(model, _HEAD, None)
    spared = [module for module in model.modules() if isinstance(module, nn.Embedding) or module is head]
    return chosen - {id(parameter) for module in spared for parameter in module.parameters()}


def _is_conv1d(module: nn.Module) -> bool:
    # transformers' name for the linear layer of GPT-2.
    return type(module).__module__ == "transformers.pytorch_utils" and type(module).__name__ == "Conv1D"


def _no_fit(model: nn.Module, pattern: str) -> str:
    names = [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
    problem = "fits no parameter with two axes or more"
    return format_error("targets", problem, did_you_mean(pattern.strip("*").strip("."), names), value=pattern)
