"""Shared parts of the losses over target values: shapes, precision, checks and the number of targets."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.loss.classification import promote_to_float32
from trainer.targets import check_values


class RegressionLoss(nn.Module):
    """Base class of the losses of outputs (B, V) with target values (B, V).

    Args:
        num_outputs: Values per sample V, if the task knows them.
    """

    targets: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(self, num_outputs: int | None = None) -> None:
        super().__init__()
        self.num_outputs = num_outputs

    def check(self, target: Tensor) -> None:
        """Raise RowError unless `target` is floating-point (B, V) and finite."""
        check_values(target, self.num_outputs)

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the entries of `target` (B, V): int64, shape ()."""
        return count_tensor(target, target.numel())


def prepare_values(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return `output` and `target` (B, V) in one type: float32, or float64 for a float64 output.

    Raises:
        ValueError: The shapes differ. Torch would broadcast (B,) against (B, 1) to (B, B).
    """
    if output.shape != target.shape:
        raise ValueError(f"the output {tuple(output.shape)} and the target {tuple(target.shape)} must have one shape")
    output = promote_to_float32(output)
    return output, target.to(output.dtype)


def count_tensor(target: Tensor, number: int) -> Tensor:
    """Return `number` as a tensor: int64, shape (), on the target's device, without a copy from the host."""
    return target.new_full((), number, dtype=torch.int64)
