"""Mean squared error."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trainer.loss.regression import RegressionLoss, prepare_values


class Mse(RegressionLoss):
    """Squared error of outputs (B, V) and target values (B, V): the sum of (output - target) ** 2 over all entries.

    `num_targets`, the divisor of a step, counts entries, so the loss of a step is torch's `mse_loss` of all its rows.

    Args:
        num_outputs: Values per sample V, if the task knows them.
    """

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the entries: shape (), float32 (float64 for float64 outputs).

        Raises:
            ValueError: The shapes differ.
        """
        return F.mse_loss(*prepare_values(output, target), reduction="sum")
