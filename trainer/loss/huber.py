"""Huber loss."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.errors import raise_if_any
from trainer.loss.regression import count, pair
from trainer.ranges import positive
from trainer.targets import check_values


class Huber(nn.Module):
    """Huber loss of outputs (B, V) and target values (B, V), summed over all entries.

    With the error e = output - target, an entry has e ** 2 / 2 where |e| <= delta, else delta * (|e| - delta / 2)
    (Huber 1964, "Robust estimation of a location parameter", https://doi.org/10.1214/aoms/1177703732): outliers pull
    with at most delta. The divisor of a step counts entries, so a step's loss is torch's `huber_loss` of all its rows.

    Args:
        delta: Where the square turns into a line, in the unit of the target; above 0.
        num_outputs: Values of a sample, V, where the task knows them.

    Raises:
        ConfigError: `delta` is out of range.
    """

    targets: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(self, delta: float, num_outputs: int | None = None) -> None:
        super().__init__()
        raise_if_any(positive("delta", delta))
        self.delta = delta
        self.num_outputs = num_outputs

    def check(self, target: Tensor) -> None:
        """Raises RowError unless `target` is floating (B, V) and finite."""
        check_values(target, self.num_outputs)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the entries: shape (), float32 (float64 for float64 outputs).

        Raises:
            ValueError: The shapes differ.
        """
        return F.huber_loss(*pair(output, target), reduction="sum", delta=self.delta)

    def num_targets(self, target: Tensor) -> Tensor:
        """How many entries `target` (B, V) has: int64, shape ()."""
        return count(target, target.numel())
