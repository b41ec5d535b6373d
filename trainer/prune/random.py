"""Pruning at random."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import prune

from trainer.prune.amount import check_amount
from trainer.prune.method import kept_by


def random(weights: Mapping[str, Tensor], seed: int, *, amount: float) -> dict[str, Tensor]:
    """Of each weight as many elements go, whichever: what the other methods are to be better than.

    torch's `RandomUnstructured`, drawn on the CPU from a generator of its own.

    Args:
        weights: By name, on the CPU, of any shape.
        seed: The job's; the same one prunes the same elements.
        amount: A share of the elements of each weight, or a count.

    Returns:
        For each weight whether an element stays, boolean.

    Raises:
        ConfigError: The amount is out of range, or leaves nothing of a weight.
    """
    check_amount(amount, {name: weight.numel() for name, weight in weights.items()}, "elements")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return kept_by(prune.RandomUnstructured(amount), weights)
