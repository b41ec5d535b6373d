"""Magnitude pruning, each weight on its own."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.utils import prune

from trainer.constraints import validated
from trainer.prune.masks import Amount, check_amount, compute_masks


@validated()
def l1(weights: Mapping[str, Tensor], *, amount: Amount) -> dict[str, Tensor]:
    """Prune the elements of each weight that are closest to 0, by torch's `L1Unstructured`.

    Source: Han et al. 2015, "Learning both weights and connections for efficient neural networks",
    https://arxiv.org/abs/1506.02626.

    Args:
        weights: Weights of any shape by name, on the CPU.
        amount: Share of the elements of each weight, in [0, 1), or a count if it is an integer. Elements that are 0
            already are pruned first.

    Returns:
        For each weight a boolean tensor of its shape: True keeps an element.

    Raises:
        ConfigError: It prunes all of a weight.
    """
    check_amount(amount, {name: weight.numel() for name, weight in weights.items()}, "elements")
    return compute_masks(prune.L1Unstructured(amount), weights)
