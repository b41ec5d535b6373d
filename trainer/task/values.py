"""What the tasks with numbers as targets share: standardizing them, metrics and answers in the user's units."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.errors import DataError, RowError, format_error
from trainer.task.moments import Moments

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection


class Values:
    """V numbers a sample, standardized by the means and standard deviations of the training split.

    Outputs and targets (B, V) are standardized, so a loss weighs every value alike, whatever its unit, and so does the
    output of an exported graph; answers and metrics are in the user's units.

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

    def learn(self, train: Dataset) -> None:
        """Takes mean and standard deviation from the column `value` of the training split.

        Rows that `encode` refuses are passed over: it says where they are.

        Raises:
            DataError: A value is the same in every row, or too large to be standardized.
        """
        moments: Moments | None = None
        for batch in train.select_columns(self.role).iter(10_000):
            moments = moments or Moments(len(batch["value"][0]))
            rows = [row for row in batch["value"] if len(row) == len(moments.mean)]
            moments.add(np.array(rows, dtype=np.float64).reshape(len(rows), -1))
        assert moments is not None, "a training split has rows"
        faults = (
            [] if len(moments.mean) else [format_error("value", "must be one number or more in every row", value=[])]
        )
        for number, (std, low, high) in enumerate(zip(moments.std, moments.low, moments.high, strict=True), start=1):
            name = "value" if len(moments.mean) == 1 else f"value, number {number} of {len(moments.mean)}"
            if not std:
                faults.append(format_error(name, "is the same in every row of training", value=float(low)))
            elif not np.isfinite(std):
                faults.append(format_error(name, "is too large to be standardized", value=float(max(high, -low))))
        if faults:
            raise DataError(*faults)
        self.mean, self.std, self.num_train = moments.mean.tolist(), moments.std.tolist(), len(train)

    def encode(self, rows: Sequence[Sequence[float]]) -> list[np.ndarray]:
        """The standardized values of each row, float32 (V,).

        Raises:
            RowError: A row has another number of values than training, or one of them is not finite.
        """
        for position, row in enumerate(rows):
            if len(row) != len(self.mean):
                problem = f"must be {len(self.mean)} numbers, as in the first row of training"
                raise RowError(position, "value", format_error("value", problem, value=list(row)))
        values = np.array(rows, dtype=np.float64)
        with np.errstate(over="ignore"):
            standardized = ((values - self.mean) / self.std).astype(np.float32)
        wrong = ~np.isfinite(standardized)
        if wrong.any():
            position, place = (int(index) for index in np.argwhere(wrong)[0])
            problem = "must be finite, and not beyond float32 once it is standardized"
            raise RowError(position, "value", format_error("value", problem, value=float(values[position, place])))
        return list(standardized)

    def tell(self, encoded: Mapping[str, Dataset]) -> None:
        """Logs nothing: numbers cannot be counted as labels are."""

    @staticmethod
    def target(rows: Sequence[np.ndarray]) -> Tensor:
        """The target of encoded rows, float32 (B, V)."""
        return torch.from_numpy(np.stack(rows))

    def info_fields(self) -> dict[str, Any]:
        return {"num_outputs": len(self.mean), "num_train": self.num_train}

    def metrics(self) -> MetricCollection:
        """R2, mean absolute and root mean squared errors, both correlations: the mean over the values of each."""
        from trainer.task.regression_metric import regression_metrics

        return regression_metrics(self.std)

    def predictions(self, output: Tensor, top: int) -> list[dict[str, Any]]:
        """For each row of outputs (B, V) the `value` in the user's units: a number, or a list where V is above 1.

        Whatever `top` is: of numbers there is one answer.
        """
        values = (output.cpu().double().numpy() * self.std + self.mean).tolist()
        return [{"value": row[0] if len(row) == 1 else row} for row in values]

    def artifact_files(self) -> dict[str, str]:
        """`values.json`: a value in the user's units is the graph's output times `std` plus `mean`."""
        return {"values.json": json.dumps({"mean": self.mean, "std": self.std}, indent=1) + "\n"}

    def state_dict(self) -> dict[str, Any]:
        return {"value_mean": self.mean, "value_std": self.std, "num_train": self.num_train}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.std = list(state["value_mean"]), list(state["value_std"])
        self.num_train = int(state["num_train"])
