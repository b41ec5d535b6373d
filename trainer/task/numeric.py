"""Standardized numbers: moments of columns, and the target encoders of values and of similarity scores."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from trainer.display import counted
from trainer.errors import DataError, RowError, format_error
from trainer.files.mapped import MappedRows, read_chunks
from trainer.protocols import Prediction, StateDict
from trainer.shapes import to_json
from trainer.task.supervised import TargetFields

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

logger = logging.getLogger(__name__)

_MAX_CLASSES = 5
"""Up to this number of different values is noted: they may be classes."""


class Moments:
    """Mean and standard deviation of V columns, accumulated batch by batch; NaN and infinite entries are skipped.

    Batches are merged without a difference of large sums, so a small spread around a large mean keeps its digits.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".

    Attributes:
        count: Finite entries of each column, (V,).
        mean: Their means, (V,); 0 for a column without any.
        low: The smallest entry of each column, (V,); infinite for a column without any.
        high: The largest entry of each column, (V,).
    """

    def __init__(self, num_columns: int) -> None:
        self.count = np.zeros(num_columns, dtype=np.int64)
        self.mean = np.zeros(num_columns)
        self.low = np.full(num_columns, np.inf)
        self.high = np.full(num_columns, -np.inf)
        self._squares = np.zeros(num_columns)

    def add(self, values: np.ndarray) -> None:
        """Add the rows `values`, float64 (N, V)."""
        finite = np.isfinite(values)
        filled = np.where(finite, values, 0.0)
        count = finite.sum(axis=0)
        # An overflow makes `std` infinite or NaN, which the callers reject.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = filled.sum(axis=0) / np.maximum(count, 1)
            deviations = np.where(finite, filled - mean, 0.0)
            weight = count / np.maximum(self.count + count, 1)
            shift = mean - self.mean
            self._squares += (deviations**2).sum(axis=0) + shift**2 * self.count * weight
            self.mean += shift * weight
        self.low = np.minimum(self.low, np.where(finite, values, np.inf).min(axis=0, initial=np.inf))
        self.high = np.maximum(self.high, np.where(finite, values, -np.inf).max(axis=0, initial=-np.inf))
        self.count += count

    @property
    def std(self) -> np.ndarray:
        """Standard deviations (V,): 0 for a constant column, not finite for a column of too large numbers."""
        with np.errstate(invalid="ignore"):
            spread: np.ndarray = np.sqrt(self._squares / np.maximum(self.count, 1))
        return np.where(self.low < self.high, spread, 0.0)


class RegressionTarget:
    """Encodes V numbers per sample, standardized by the means and standard deviations of the training split.

    Outputs and targets (B, V) are standardized, so a loss weighs all values alike, whatever their units; the output of
    an exported graph is standardized, too. Predictions and metrics are in the user's units.

    Attributes:
        mean: The mean of each value in training.
        std: The standard deviation of each value in training, above 0.
        num_train: Training samples.
    """

    role: ClassVar[str] = "value"

    def __init__(self) -> None:
        self.mean: list[float] = []
        self.std: list[float] = []
        self.num_train = 0

    def fit(self, train: Dataset) -> None:
        """Compute mean and standard deviation of the column `value` of the training split.

        Rows that `encode` rejects are skipped here, because `encode` reports their positions.

        Raises:
            DataError: A value is the same in every row, or too large to be standardized.
        """
        moments: Moments | None = None
        for batch in train.select_columns(self.role).iter(10_000):
            moments = moments or Moments(len(batch["value"][0]))
            rows = [row for row in batch["value"] if len(row) == len(moments.mean)]
            moments.add(np.array(rows, dtype=np.float64).reshape(len(rows), -1))
        assert moments is not None, "a training split has rows"
        problems = [] if len(moments.mean) else [format_error("value", "must be at least one number", value=[])]
        for number, (std, low, high) in enumerate(zip(moments.std, moments.low, moments.high, strict=True), start=1):
            name = "value" if len(moments.mean) == 1 else f"value, number {number} of {len(moments.mean)}"
            if not std:
                problems.append(format_error(name, "is the same in every row of training", value=float(low)))
            elif not np.isfinite(std):
                problems.append(format_error(name, "is too large to be standardized", value=float(max(high, -low))))
        if problems:
            raise DataError(*problems)
        self.mean, self.std, self.num_train = moments.mean.tolist(), moments.std.tolist(), len(train)

    def encode(self, rows: Sequence[Sequence[float]]) -> list[np.ndarray]:
        """Return the standardized values of each row, float32 (V,).

        Raises:
            RowError: A row does not have as many values as in training, or one of them is not finite.
        """
        for position, row in enumerate(rows):
            if len(row) != len(self.mean):
                problem = f"must be {counted(len(self.mean), 'number')}, as in the first row of training"
                raise RowError(position, "value", format_error("value", problem, value=list(row)))
        values = np.array(rows, dtype=np.float64)
        with np.errstate(over="ignore"):
            standardized = ((values - self.mean) / self.std).astype(np.float32)
        invalid = ~np.isfinite(standardized)
        if invalid.any():
            position, place = (int(index) for index in np.argwhere(invalid)[0])
            problem = "must be finite, and within float32 once it is standardized"
            raise RowError(position, "value", format_error("value", problem, value=float(values[position, place])))
        return list(standardized)

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Log the values of training if they are few enough to be classes; return no warnings."""
        distinct: set[float] = set()
        for batch in read_chunks(encoded["train"], self.role):
            distinct.update(batch[self.role].combine_chunks().flatten().to_pylist())
            if len(self.mean) > 1 or len(distinct) > _MAX_CLASSES:
                return []
        remedy = "If they are classes, choose a classification task and name their column in data.label"
        logger.info("value: training has only %d different values. %s.", len(distinct), remedy)
        return []

    @staticmethod
    def to_tensor(rows: Sequence[np.ndarray]) -> Tensor:
        """Return the target of encoded rows, float32 (B, V)."""
        return torch.from_numpy(np.stack(rows))

    def info_fields(self) -> TargetFields:
        return {"num_outputs": len(self.mean), "num_train": self.num_train}

    def metrics(self) -> MetricCollection:
        """Return R2, mean absolute and root mean squared error and both correlations, as means over the V values."""
        from trainer.task.regression_metrics import regression_metrics

        return regression_metrics(self.std)

    def in_units(self, values: Tensor) -> Tensor:
        """Return outputs or targets (B, V) in the user's units, float64 where the device has it."""
        values = values if values.device.type == "mps" else values.double()
        return values * values.new_tensor(self.std) + values.new_tensor(self.mean)

    def predictions(self, output: Tensor, top: int) -> list[Prediction]:
        """Return the `value` in the user's units for each row of outputs (B, V): a number, or a list if V is above 1.

        `top` has no effect.
        """
        values = (output.cpu().double().numpy() * self.std + self.mean).tolist()
        return [{"value": row[0] if len(row) == 1 else row} for row in values]

    def artifact_files(self) -> dict[str, str]:
        """Return `values.json`: a value in the user's units is the graph's output times `std` plus `mean`."""
        return {"values.json": to_json({"mean": self.mean, "std": self.std}, indent=1) + "\n"}

    def state_dict(self) -> StateDict:
        return {"value_mean": self.mean, "value_std": self.std, "num_train": self.num_train}

    def load_state_dict(self, state: StateDict) -> None:
        self.mean, self.std = list(state["value_mean"]), list(state["value_std"])
        self.num_train = int(state["num_train"])


class SimilarityTarget:
    """Encodes a score per sample as a similarity from -1 to 1.

    Args:
        threshold: The similarity is 1 for a score of at least this value, else -1. None maps the range of the training
            scores to [-1, 1], and scores outside it to its ends.

    Attributes:
        range: The smallest and the largest score of training; None before `fit`.
    """

    role: ClassVar[str] = "score"

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.range: tuple[float, float] | None = None

    def fit(self, train: Dataset) -> None:
        """Compute the range of the column `score` of the training split.

        Scores that are not finite are skipped here, because `encode` reports their positions.

        Raises:
            DataError: All scores are the same, or all are on one side of the threshold.
        """
        scores = np.array(train[self.role], dtype=np.float64)
        scores = scores[np.isfinite(scores)]
        if not len(scores) or scores.min() == scores.max():
            value = [float(score) for score in scores[:1]]
            raise DataError(format_error(self.role, "must not be the same in every row of training", value=value))
        low, high = float(scores.min()), float(scores.max())
        if self.threshold is not None and not low < self.threshold <= high:
            problem = f"must divide the scores of training, which go from {low:g} to {high:g}"
            raise DataError(format_error("task.threshold", problem, value=self.threshold))
        self.range = (low, high)

    def encode(self, rows: Sequence[float]) -> list[float]:
        """Return the similarity of each row.

        Raises:
            RowError: A score is not finite.
        """
        scores = np.array(rows, dtype=np.float64)
        if not np.isfinite(scores).all():
            position = int(np.flatnonzero(~np.isfinite(scores))[0])
            message = format_error(self.role, "must be finite", value=float(scores[position]))
            raise RowError(position, self.role, message)
        if self.threshold is not None:
            return [1.0 if score >= self.threshold else -1.0 for score in scores]
        assert self.range is not None, "neither fitted nor loaded"
        low, high = self.range
        scaled: list[float] = (2 * ((scores - low) / (high - low)).clip(0, 1) - 1).tolist()
        return scaled

    @staticmethod
    def to_tensor(similarities: Sequence[float]) -> Tensor:
        """Return the target of encoded rows, float32 (B,)."""
        return torch.from_numpy(np.array(similarities, dtype=np.float32))

    def state_dict(self) -> StateDict:
        return {"score_range": None if self.range is None else list(self.range)}

    def load_state_dict(self, state: StateDict) -> None:
        self.range = None if state["score_range"] is None else tuple(state["score_range"])
