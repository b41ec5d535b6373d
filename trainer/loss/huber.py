"""Huber loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from trainer.constraints import Positive, validated
from trainer.loss.regression import RegressionLoss, prepare_values


class Huber(RegressionLoss):
    """Huber loss of outputs (B, V) and target values (B, V), summed over all entries.

    With the error e = output - target, the loss of an entry is e ** 2 / 2 if |e| <= delta, else delta * (|e| - delta /
    2) (Huber 1964, "Robust estimation of a location parameter", https://doi.org/10.1214/aoms/1177703732): the gradient
    of an outlier is at most delta. `num_targets`, the divisor of a step, counts entries, so the loss of a step is
    torch's `huber_loss` of all its rows.

    Args:
        delta: Error at which the loss turns from quadratic to linear, in the unit of the target; greater than 0.
        num_outputs: Values per sample V, if the task knows them.
    """

    @validated()
    def __init__(self, delta: Positive, num_outputs: int | None = None) -> None:
        super().__init__(num_outputs)
        self.delta = delta

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the entries: shape (), float32 (float64 for float64 outputs).

        Raises:
            ValueError: The shapes differ.
        """
        return F.huber_loss(*prepare_values(output, target), reduction="sum", delta=self.delta)
