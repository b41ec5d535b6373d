"""Structured pruning: whole rows, columns or channels."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.utils import prune

from trainer.constraints import PositiveOrInfinite, validated
from trainer.errors import ConfigError, format_error
from trainer.prune.masks import Amount, check_amount, compute_masks


@validated()
def ln(weights: Mapping[str, Tensor], *, amount: Amount, n: PositiveOrInfinite, dim: int) -> dict[str, Tensor]:
    """Prune the slices of each weight along one axis that have the smallest n-norm, by torch's `LnStructured`.

    Source: Li et al. 2017, "Pruning filters for efficient convnets", https://arxiv.org/abs/1608.08710, with n = 1.

    Args:
        weights: Weights by name, on the CPU, with at least two axes.
        amount: Share of the slices of each weight, in [0, 1), or a count if it is an integer.
        n: Order of the norm, above 0; infinity takes the largest magnitude.
        dim: Axis of the slices: 0 for outputs (rows of a linear layer, filters of a convolution), 1 for inputs.

    Returns:
        For each weight a boolean tensor of its shape: True keeps an element.

    Raises:
        ConfigError: Nothing is left of a weight.
    """
    too_few_axes = [
        f"{name} {tuple(weight.shape)}" for name, weight in weights.items() if not -weight.ndim <= dim < weight.ndim
    ]
    if too_few_axes:
        raise ConfigError(format_error("dim", f"there is no such axis in {', '.join(too_few_axes)}", value=dim))
    check_amount(amount, {name: weight.shape[dim] for name, weight in weights.items()}, "slices")
    return compute_masks(prune.LnStructured(amount, n, dim), weights)
