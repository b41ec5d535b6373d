"""Which parameters an optimizer gets, and which of them decay."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

from torch import nn

from trainer.errors import ConfigError, explain

# Their tables and gains are matrices by shape alone: a row of a table that no batch uses would only shrink.
_UNDECAYED: Final = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)
_FUSED_DEVICES: Final = frozenset({"cpu", "cuda", "mps"})


def undecayed_names(module: nn.Module) -> frozenset[str]:
    """The names, as in `module.named_parameters()`, of the embeddings' and norms' own parameters.

    A parameter shared by an embedding and another layer (tied weights) counts as the embedding's.
    """
    found = {
        id(parameter)
        for part in module.modules()
        if isinstance(part, _UNDECAYED)
        for parameter in part.parameters(recurse=False)
    }
    return frozenset(name for name, parameter in module.named_parameters() if id(parameter) in found)


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, undecayed: Collection[str]
) -> list[dict[str, Any]]:
    """The trainable parameters in at most two groups: those that decay, then those that do not.

    Biases, norms and whatever else has fewer than two axes never decay. Each group holds (name, parameter) pairs,
    which torch keeps apart as `params` and `param_names`. A frozen parameter is in none.

    Args:
        named_parameters: All parameters of the job.
        weight_decay: The decay of the first group, per unit of learning rate.
        undecayed: Names of further parameters that do not decay; see `undecayed_names`.

    Raises:
        ConfigError: Every parameter is frozen.
    """
    trainable = [(name, parameter) for name, parameter in named_parameters if parameter.requires_grad]
    if not trainable:
        problem = "there is nothing to optimize: every parameter is frozen"
        raise ConfigError(explain("named_parameters", problem, "Take something out of model.freeze"))
    decays = {name: parameter.ndim >= 2 and name not in undecayed for name, parameter in trainable}
    groups = [
        {"params": [pair for pair in trainable if decays[pair[0]]], "weight_decay": weight_decay},
        {"params": [pair for pair in trainable if not decays[pair[0]]], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def can_fuse(groups: Iterable[dict[str, Any]]) -> bool:
    """Whether one fused kernel can update every parameter of `parameter_groups`: floating point, on a known device."""
    return all(
        parameter.is_floating_point() and parameter.device.type in _FUSED_DEVICES
        for group in groups
        for _, parameter in group["params"]
    )
