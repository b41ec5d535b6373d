"""Mean squared error with a term for the correlation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from trainer.errors import raise_if_any
from trainer.loss.regression import count, pair
from trainer.ranges import not_negative
from trainer.targets import check_values


class MseCorrelation(nn.Module):
    """Squared error plus lack of correlation of outputs (B, V) and target values (B, V).

    A column of V has the mean squared error over the rows + correlation * (1 - mean(z_output * z_target)), where z is
    a column less its mean over the rows, divided by its unbiased standard deviation; the loss is the mean over the
    columns, times B. The mean of the product is Pearson's correlation times (B - 1) / B, since only the standard
    deviations are unbiased. A column without spread, of outputs or targets, has the correlation 0; so has each of a
    batch of one row.

    It is a statistic of the batch: means and deviations are those of a micro-batch, so accumulation does not merge its
    micro-batches. The divisor of a step counts rows.

    Args:
        correlation: Weight of the correlation term; at least 0.
        num_outputs: Values of a sample, V, where the task knows them.

    Raises:
        ConfigError: `correlation` is out of range.
    """

    targets: ClassVar[tuple[str, ...]] = ("values",)

    def __init__(self, correlation: float, num_outputs: int | None = None) -> None:
        super().__init__()
        raise_if_any(not_negative("correlation", correlation))
        self.correlation = correlation
        self.num_outputs = num_outputs

    def check(self, target: Tensor) -> None:
        """Raises RowError unless `target` is floating (B, V) and finite."""
        check_values(target, self.num_outputs)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The batch's value times its rows: shape (), float32 (float64 for float64 outputs).

        Raises:
            ValueError: The shapes differ.
        """
        output, target = pair(output, target)
        # For the mean squared error, times the rows is the sum over the rows.
        squared = (output - target).square().sum(dim=0)
        lack = len(output) * (1 - _correlation(output, target))
        return (squared + self.correlation * lack).sum() / max(1, output.shape[1])

    def num_targets(self, target: Tensor) -> Tensor:
        """How many rows `target` (B, V) has: int64, shape ()."""
        return count(target, len(target))


def _correlation(output: Tensor, target: Tensor) -> Tensor:
    """The mean over the rows of the product of the standardised columns, (V,)."""
    (z_output, has_spread), (z_target, target_has_spread) = _standardised(output), _standardised(target)
    mean = (z_output * z_target).sum(dim=0) / max(1, len(output))
    return mean.masked_fill(~(has_spread & target_has_spread), 0)


def _standardised(values: Tensor) -> tuple[Tensor, Tensor]:
    """Columns (B, V) of mean 0 and unbiased deviation 1, and which of them have spread, (V,)."""
    rows = max(1, len(values))
    deviation = values - values.sum(dim=0) / rows
    squared = deviation.square().sum(dim=0)
    # What rounding the mean of equal values leaves is no spread.
    rounding = 16 * torch.finfo(values.dtype).eps
    has_spread = squared > rounding**2 * values.detach().square().sum(dim=0)
    variance = (squared / max(1, rows - 1)).masked_fill(~has_spread, 1)
    return deviation / variance.sqrt(), has_spread
