"""Magnitude pruning over all weights together."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import prune

from trainer.constraints import validated
from trainer.prune.masks import Amount, check_amount, compute_masks

PRUNES_TOGETHER = True
"""A layer may lose all its elements, so the amount is not compared with the size of the smallest weight."""


@validated()
def global_magnitude(weights: Mapping[str, Tensor], *, amount: Amount) -> dict[str, Tensor]:
    """Prune the elements of all weights that are closest to 0, so the layers end up with different sparsities.

    torch's `global_unstructured` with `L1Unstructured`. It may prune a layer of small weights completely.

    Args:
        weights: Weights of any shape by name, on the CPU.
        amount: Share of the elements of all weights together, in [0, 1), or a count if it is an integer. Elements that
            are 0 already are pruned first.

    Returns:
        For each weight a boolean tensor of its shape: True keeps an element.

    Raises:
        ConfigError: It leaves nothing.
    """
    check_amount(amount, {"all weights": sum(weight.numel() for weight in weights.values())}, "elements")
    joined = torch.cat([weight.flatten() for weight in weights.values()])
    kept = compute_masks(prune.L1Unstructured(amount), {"all": joined})["all"]
    parts = torch.split(kept, [weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}
