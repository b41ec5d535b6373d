"""Pruning by magnitude, weight by weight."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.utils import prune

from trainer.prune.amount import check_amount
from trainer.prune.method import kept_by


def l1(weights: Mapping[str, Tensor], *, amount: float) -> dict[str, Tensor]:
    """Of each weight the elements nearest to 0 go: torch's `L1Unstructured`.

    Source: Han et al. 2015, "Learning both weights and connections for efficient neural networks",
    https://arxiv.org/abs/1506.02626.

    Args:
        weights: By name, on the CPU, of any shape.
        amount: A share of the elements of each weight, or a count. Elements that are 0 already go first.

    Returns:
        For each weight whether an element stays, boolean.

    Raises:
        ConfigError: The amount is out of range, or leaves nothing of a weight.
    """
    check_amount(amount, {name: weight.numel() for name, weight in weights.items()}, "elements")
    return kept_by(prune.L1Unstructured(amount), weights)
