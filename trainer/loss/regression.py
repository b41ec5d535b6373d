"""What the losses over target values share: shapes, precision and the number of targets."""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.loss.classification import at_least_float32


def pair(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """`output` and `target` (B, V) in one type: float32, or float64 where the output is.

    Raises:
        ValueError: Their shapes differ. Torch would broadcast (B,) against (B, 1) to (B, B).
    """
    if output.shape != target.shape:
        raise ValueError(f"the output {tuple(output.shape)} and the target {tuple(target.shape)} must have one shape")
    output = at_least_float32(output)
    return output, target.to(output.dtype)


def count(target: Tensor, number: int) -> Tensor:
    """`number` as a count of targets: int64, shape (), on the target's device without a copy from the host."""
    return target.new_full((), number, dtype=torch.int64)
