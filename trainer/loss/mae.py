"""Mean absolute error."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.loss.regression import count, pair
from trainer.targets import check_values


class Mae(nn.Module):
    """Absolute error of outputs (B, V) and target values (B, V): the sum of abs(output - target) over all entries.

    The divisor of a step counts entries, so a step's loss is torch's `l1_loss` of all its rows.

    Args:
        num_outputs: Values of a sample, V, where the task knows them.
    """

    targets: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(self, num_outputs: int | None = None) -> None:
        super().__init__()
        self.num_outputs = num_outputs

    def check(self, target: Tensor) -> None:
        """Raises RowError unless `target` is floating (B, V) and finite."""
        check_values(target, self.num_outputs)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the entries: shape (), float32 (float64 for float64 outputs).

        Raises:
            ValueError: The shapes differ.
        """
        return F.l1_loss(*pair(output, target), reduction="sum")

    def num_targets(self, target: Tensor) -> Tensor:
        """How many entries `target` (B, V) has: int64, shape ()."""
        return count(target, target.numel())
