"""Random pruning."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.utils import prune

from trainer.constraints import validated
from trainer.prune.masks import Amount, check_amount, compute_masks


@validated()
def random(weights: Mapping[str, Tensor], seed: int, *, amount: Amount) -> dict[str, Tensor]:
    """Prune random elements of each weight: the baseline for the other methods.

    torch's `RandomUnstructured`, with a CPU generator of its own.

    Args:
        weights: Weights of any shape by name, on the CPU.
        seed: Seed of the job. Equal seeds prune equal elements.
        amount: Share of the elements of each weight, in [0, 1), or a count if it is an integer.

    Returns:
        For each weight a boolean tensor of its shape: True keeps an element.

    Raises:
        ConfigError: It prunes all of a weight.
    """
    check_amount(amount, {name: weight.numel() for name, weight in weights.items()}, "elements")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return compute_masks(prune.RandomUnstructured(amount), weights)
