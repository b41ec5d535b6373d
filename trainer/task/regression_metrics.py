"""Metrics of predicted numbers, exact over a whole split.

torchmetrics' own metrics accumulate in float32, declare no direction for the correlations, reject a split of one
sample, and rank in int32, which overflows if tens of thousands of targets are equal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.utilities import dim_zero_cat


class KeptRows(Metric):
    """The base of metrics that keep all outputs and targets of a split until the end."""

    full_state_update = False
    outputs: list[Tensor]
    targets: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("outputs", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add the outputs and targets of a batch."""
        self.outputs.append(output.detach())
        self.targets.append(target)

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return the outputs and the targets of all rows, on the CPU."""
        return dim_zero_cat(self.outputs).cpu(), dim_zero_cat(self.targets).cpu()


class Statistic(KeptRows):
    """A statistic of all outputs and targets (N, V) of a split in float64, averaged over the V values.

    It keeps 8 * V bytes per sample; metrics in one collection share them.

    Args:
        statistic: Maps outputs and targets (N, V), float64 on the host, to one number per value, (V,).
        scale: Factors for standardized outputs and targets, V numbers. The means need not be added, because no
            statistic changes if outputs and targets are shifted together.
    """

    def __init__(self, statistic: Callable[[Tensor, Tensor], Tensor], scale: Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.statistic = statistic
        self.scale = list(scale)

    def compute(self) -> Tensor:
        """Return the mean over the values: shape (), float64."""
        scale = torch.tensor(self.scale, dtype=torch.float64)
        output, target = (rows.double() * scale for rows in self.rows())
        return self.statistic(output, target).mean()


class Score(Statistic):
    """A statistic that is better if it is higher."""

    higher_is_better = True


class Error(Statistic):
    """A statistic that is better if it is lower."""

    higher_is_better = False


def regression_metrics(scale: Sequence[float]) -> MetricCollection:
    """Return the metrics of standardized outputs and targets (B, V) whose standard deviations are `scale`."""
    return MetricCollection(
        {
            "r2": Score(r2, scale),
            "mae": Error(mean_absolute_error, scale),
            "rmse": Error(root_mean_squared_error, scale),
            "pearson": Score(pearson, scale),
            "spearman": Score(spearman, scale),
        }
    )


def r2(output: Tensor, target: Tensor) -> Tensor:
    """1 - sum((target - output)^2) / sum((target - mean)^2), (N, V) to (V,): the fraction of explained variance.

    If all targets are equal there is no variance: 1 if the outputs equal them, else 0, as in scikit-learn.
    """
    residual = (target - output).square().sum(0)
    total = (target - target.mean(0)).square().sum(0)
    constant = target.amin(0) == target.amax(0)
    return torch.where(constant, (residual == 0).double(), 1 - residual / total)


def mean_absolute_error(output: Tensor, target: Tensor) -> Tensor:
    """mean(|output - target|), (N, V) to (V,)."""
    return (output - target).abs().mean(0)


def root_mean_squared_error(output: Tensor, target: Tensor) -> Tensor:
    """sqrt(mean((output - target)^2)), (N, V) to (V,)."""
    return (output - target).square().mean(0).sqrt()


def pearson(output: Tensor, target: Tensor) -> Tensor:
    """Pearson's correlation, (N, V) to (V,); NaN if all outputs or all targets are equal, which leaves it undefined."""
    varied = (output.amin(0) < output.amax(0)) & (target.amin(0) < target.amax(0))
    output, target = (values - values.mean(0) for values in (output, target))
    correlation = (output * target).sum(0) / (output.norm(dim=0) * target.norm(dim=0))
    return torch.where(varied, correlation.clamp(-1, 1), torch.nan)


def spearman(output: Tensor, target: Tensor) -> Tensor:
    """Spearman's correlation: Pearson's of the ranks, (N, V) to (V,); equal numbers share the mean of their ranks."""
    return pearson(average_ranks(output), average_ranks(target))


def average_ranks(values: Tensor) -> Tensor:
    """Return the ranks of each column from 1, (N, V), float64; equal numbers share the mean of their ranks."""
    ranks = []
    for column in values.T:
        _, places, counts = column.unique(return_inverse=True, return_counts=True)
        ranks.append((counts.cumsum(0) - (counts - 1) / 2)[places])
    return torch.stack(ranks, dim=1).double()
