"""Pruning by magnitude, over all weights at once."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import prune

from trainer.prune.amount import check_amount
from trainer.prune.method import kept_by


def global_magnitude(weights: Mapping[str, Tensor], *, amount: float) -> dict[str, Tensor]:
    """Of all weights together the elements nearest to 0 go, so that layers keep different shares.

    torch's `global_unstructured` with `L1Unstructured`. It may take all of a layer of small weights.

    Args:
        weights: By name, on the CPU, of any shape.
        amount: A share of the elements of all of them, or a count. Elements that are 0 already go first.

    Returns:
        For each weight whether an element stays, boolean.

    Raises:
        ConfigError: The amount is out of range, or leaves nothing.
    """
    check_amount(amount, {"all weights": sum(weight.numel() for weight in weights.values())}, "elements")
    together = torch.cat([weight.flatten() for weight in weights.values()])
    kept = kept_by(prune.L1Unstructured(amount), {"all": together})["all"]
    parts = torch.split(kept, [weight.numel() for weight in weights.values()])
    return {name: part.view(weight.shape) for (name, weight), part in zip(weights.items(), parts, strict=True)}
