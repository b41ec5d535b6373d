"""Mean squared error with a term for the correlation."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from trainer.constraints import NonNegative, validated
from trainer.loss.regression import RegressionLoss, count_tensor, prepare_values


class MseCorrelation(RegressionLoss):
    """Squared error plus lack of correlation of outputs (B, V) and target values (B, V).

    The loss of a column of V is the mean squared error over the rows + correlation * (1 - mean(z_output * z_target));
    z is a column minus its mean over the rows, divided by its unbiased standard deviation. The loss is the mean over
    the columns, times B. The mean of the product is Pearson's correlation times (B - 1) / B, because only the standard
    deviations are unbiased. The correlation is 0 for a column of outputs or targets that is constant, and in a batch of
    one row.

    This loss is a statistic of the batch: means and deviations are computed over all its rows. `num_targets`, the
    divisor of a step, counts rows.

    Args:
        correlation: Weight of the correlation term, at least 0.
        num_outputs: Values per sample V, if the task knows them.
    """

    is_batch_statistic: ClassVar[bool] = True

    @validated()
    def __init__(self, correlation: NonNegative, num_outputs: int | None = None) -> None:
        super().__init__(num_outputs)
        self.correlation = correlation

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the batch's value times its rows: shape (), float32 (float64 for float64 outputs).

        Raises:
            ValueError: The shapes differ.
        """
        output, target = prepare_values(output, target)
        # The mean squared error times the number of rows is the sum over the rows.
        squared = (output - target).square().sum(dim=0)
        lack = len(output) * (1 - _correlate(output, target))
        return (squared + self.correlation * lack).sum() / max(1, output.shape[1])

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the rows of `target` (B, V): int64, shape ()."""
        return count_tensor(target, len(target))


def _correlate(output: Tensor, target: Tensor) -> Tensor:
    """Return the mean over the rows of the product of the standardized columns, (V,)."""
    (z_output, output_varies), (z_target, target_varies) = _standardize(output), _standardize(target)
    mean = (z_output * z_target).sum(dim=0) / max(1, len(output))
    return mean.masked_fill(~(output_varies & target_varies), 0)


def _standardize(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns (B, V) with mean 0 and unbiased deviation 1, and which of them vary, (V,)."""
    rows = max(1, len(values))
    deviation = values - values.sum(dim=0) / rows
    squared = deviation.square().sum(dim=0)
    # The mean of equal values is rounded: a deviation of this size is no variation.
    rounding = 16 * torch.finfo(values.dtype).eps
    varies = squared > rounding**2 * values.detach().square().sum(dim=0)
    variance = (squared / max(1, rows - 1)).masked_fill(~varies, 1)
    return deviation / variance.sqrt(), varies
