"""Pruning masks: which weights are pruned, how they stay 0 during training, and how many zeros a model has."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.prune import BasePruningMethod

from trainer.checkpoint.tensors import encode
from trainer.constraints import BelowOne, NonNegativeInt
from trainer.errors import ConfigError, did_you_mean, format_error, raise_if_any
from trainer.layout import Document
from trainer.model.finetuning import is_conv1d, matching_parameters

Amount: TypeAlias = NonNegativeInt | BelowOne
"""A share in [0, 1), or a count if it is an integer: 1 is one element, 1.0 would be all."""

_HEAD: Final = "head"
_LAYERS: Final = (nn.Linear, _ConvNd)


class Masks:
    """The elements of a model's weights that are kept; all others are 0. Without masks, no method does anything.

    Training under masks trains the product of weights and masks, as `torch.nn.utils.prune` does with extra parameters.
    Here the parameters keep their names: the gradient of a pruned element is 0, also for the gradient norm and
    clipping, and pruned elements are set to 0 again after each update, because some optimizers mix the elements of a
    weight (Muon).

    Args:
        model: Already on its device. Pruned elements become 0.
        kept: For some of its parameters, a boolean tensor of the parameter's shape: True keeps an element.
    """

    def __init__(self, model: nn.Module, kept: Mapping[str, Tensor]) -> None:
        parameters = dict(model.named_parameters())
        self._pruned = {name: (parameters[name], ~mask.to(parameters[name].device)) for name, mask in kept.items()}
        self.zero_weights()

    @torch.no_grad()
    def zero_weights(self) -> None:
        """Set pruned elements to 0. Call this after each update."""
        for parameter, pruned in self._pruned.values():
            parameter.masked_fill_(pruned, 0)

    @torch.no_grad()
    def zero_gradients(self) -> None:
        """Set the gradients of pruned elements to 0, also infinite ones. Call this before the gradients are used."""
        for parameter, pruned in self._pruned.values():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(pruned, 0)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the masks, which are the constructor's `kept`."""
        return {name: ~pruned for name, (_, pruned) in self._pruned.items()}

    def names(self) -> tuple[str, ...]:
        """Return the names of the parameters that have a mask."""
        return tuple(self._pruned)


def select_parameters(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, nn.Parameter]:
    """Return the weights to prune, by name. Parameters with one axis (biases, gains) are never pruned.

    Args:
        model: The model.
        patterns: Patterns for names of parameters or modules, as in `freezing.freeze`. None selects the linear layers
            and convolutions, except for the head and for weights that are tied to an embedding.

    Raises:
        ConfigError: A pattern matches no weight, or the model has no such layer except for its head.
    """
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim > 1}
    if patterns is None:
        selected = _hidden_layers(model)
        if not selected:
            remedy = f"Name weights: prune.targets=[{next(iter(weights), _HEAD)}]"
            raise ConfigError(
                format_error("targets", "the model has no linear layer or convolution except for its head", remedy)
            )
    else:
        matches = {
            pattern: [parameter for parameter in matching_parameters(model, pattern) if parameter.ndim > 1]
            for pattern in patterns
        }
        raise_if_any(*(_no_match(weights, pattern) for pattern in patterns if not matches[pattern]))
        selected = {id(parameter) for parameters in matches.values() for parameter in parameters}
    return {name: parameter for name, parameter in weights.items() if id(parameter) in selected}


def _hidden_layers(model: nn.Module) -> set[int]:
    layers = {id(module.weight) for module in model.modules() if isinstance(module, _LAYERS) or is_conv1d(module)}
    head = getattr(model, _HEAD, None)
    excluded = [module for module in model.modules() if isinstance(module, nn.Embedding) or module is head]
    return layers - {id(parameter) for module in excluded for parameter in module.parameters()}


def _no_match(weights: Collection[str], pattern: str) -> str:
    problem = "matches no parameter with two axes or more"
    return format_error("targets", problem, did_you_mean(pattern.strip("*").strip("."), [*weights]), value=pattern)


def check_amount(amount: Amount, sizes: Mapping[str, int], unit: str) -> None:
    """Check that an amount leaves something of every weight.

    Args:
        amount: A share in [0, 1), or a count if it is an integer of at least 0: 1 is one element, 1.0 would be all.
        sizes: For each weight, the number of units that pruning chooses from.
        unit: The name of the unit in the plural: `elements`.

    Raises:
        ConfigError: The amount prunes all of a weight; the messages name every such weight.
    """
    is_count = isinstance(amount, int)
    errors = []
    for name, size in sizes.items():
        count = amount if is_count else round(amount * size)  # the rounding of torch.nn.utils.prune
        if size and count >= size:
            problem = f"prunes all of {name}, which has {size} {unit}"
            remedy = "Reduce it, or remove the weight from prune.targets"
            errors.append(format_error("amount", problem, remedy, value=amount))
    raise_if_any(*errors)


def compute_masks(method: BasePruningMethod, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Apply one of torch's pruning methods to each weight as if nothing had been pruned before.

    Returns:
        For each weight a boolean tensor of its shape: True keeps an element.
    """
    masks: dict[str, Tensor] = {}
    for name, weight in weights.items():
        masks[name] = method.compute_mask(weight, torch.ones_like(weight)).bool()  # type: ignore[no-untyped-call]
    return masks


@dataclass(frozen=True)
class WeightSparsity:
    """The zeros of one weight.

    Attributes:
        name: Name of the parameter.
        shape: Its shape.
        zeros: Number of elements that are 0.
        size: Number of elements.
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    size: int

    @property
    def share(self) -> float:
        """Share of zeros, in [0, 1]."""
        return self.zeros / self.size if self.size else 0.0


def measure_sparsity(model: nn.Module, names: Collection[str]) -> list[WeightSparsity]:
    """Count the zeros of the parameters in `names`, in the order of the model."""
    return [
        WeightSparsity(name, tuple(parameter.shape), int((parameter == 0).sum()), parameter.numel())
        for name, parameter in model.named_parameters()
        if name in names
    ]


def total_sparsity(weights: Collection[WeightSparsity]) -> WeightSparsity:
    """Add up the zeros of several weights."""
    zeros, size = sum(weight.zeros for weight in weights), sum(weight.size for weight in weights)
    return WeightSparsity("total", (), zeros, size)


def sparsity_report(weights: Collection[WeightSparsity]) -> Document:
    """Return a JSON document of the zeros: `layers` for the single weights, and `total`."""
    rows = [
        {**asdict(weight), "shape": list(weight.shape), "share": weight.share}
        for weight in (*weights, total_sparsity(weights))
    ]
    return {"layers": rows[:-1], "total": rows[-1]}


@torch.no_grad()
def measure_bytes(model: nn.Module) -> tuple[int, int]:
    """Return the size of a model's safetensors file, plain and compressed by zlib at its default level, in bytes."""
    compressor = zlib.compressobj()
    plain = compressed = 0
    for part in encode(model.state_dict()):
        plain += memoryview(part).nbytes
        compressed += len(compressor.compress(part))
    return plain, compressed + len(compressor.flush())
