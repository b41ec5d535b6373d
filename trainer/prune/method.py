"""torch's own pruning methods on plain tensors."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils.prune import BasePruningMethod


def kept_by(method: BasePruningMethod, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For each weight whether `method` lets an element stay, boolean, as if nothing had been pruned before."""
    masks: dict[str, Tensor] = {}
    for name, weight in weights.items():
        masks[name] = method.compute_mask(weight, torch.ones_like(weight)).bool()  # type: ignore[no-untyped-call]
    return masks
