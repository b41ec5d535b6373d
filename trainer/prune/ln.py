"""Pruning of whole rows, columns or channels."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.utils import prune

from trainer.errors import ConfigError, format_error
from trainer.prune.amount import check_amount
from trainer.prune.method import kept_by


def ln(weights: Mapping[str, Tensor], *, amount: float, n: float, dim: int) -> dict[str, Tensor]:
    """Of each weight the slices along one axis go whose n-norm is the smallest: torch's `LnStructured`.

    Source: Li et al. 2017, "Pruning filters for efficient convnets", https://arxiv.org/abs/1608.08710, with n = 1.

    Args:
        weights: By name, on the CPU, with two axes or more.
        amount: A share of the slices of each weight, or a count.
        n: Of the norm, above 0; infinity takes the largest magnitude.
        dim: The axis: 0 for outputs (rows of a linear layer, filters of a convolution), 1 for inputs.

    Returns:
        For each weight whether an element stays, boolean.

    Raises:
        ConfigError: A value is out of range, or nothing is left of a weight.
    """
    if not n > 0:
        raise ConfigError(format_error("n", "must be above 0", value=n))
    short = [
        f"{name} {tuple(weight.shape)}" for name, weight in weights.items() if not -weight.ndim <= dim < weight.ndim
    ]
    if short:
        raise ConfigError(format_error("dim", f"there is no such axis in {', '.join(short)}", value=dim))
    check_amount(amount, {name: weight.shape[dim] for name, weight in weights.items()}, "slices")
    return kept_by(prune.LnStructured(amount, n, dim), weights)
