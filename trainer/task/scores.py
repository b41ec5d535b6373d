"""How alike two texts are: the target, scaled or divided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from trainer.errors import DataError, RowError, format_error

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor


class Scores:
    """A score a sample, as a similarity from -1 to 1.

    Args:
        threshold: The similarity is 1 for a score of at least that, else -1; None: the range of the training scores is
            mapped to [-1, 1], and what is outside it to its ends.

    Attributes:
        range: The smallest and the largest score of training; None before `learn`.
    """

    role: ClassVar[str] = "score"

    def __init__(self, threshold: float | None) -> None:
        self.threshold = threshold
        self.range: tuple[float, float] | None = None

    def learn(self, train: Dataset) -> None:
        """Takes the range from the column `score` of the training split.

        Scores that are not finite are passed over: `encode` says where they are.

        Raises:
            DataError: All scores are the same, or the threshold does not divide them.
        """
        scores = np.array(train[self.role], dtype=np.float64)
        scores = scores[np.isfinite(scores)]
        if not len(scores) or scores.min() == scores.max():
            value = [float(score) for score in scores[:1]]
            raise DataError(format_error(self.role, "must not be the same in every row of training", value=value))
        low, high = float(scores.min()), float(scores.max())
        if self.threshold is not None and not low < self.threshold <= high:
            problem = f"must divide the scores of training, {low:g} to {high:g}"
            raise DataError(format_error("task.threshold", problem, value=self.threshold))
        self.range = (low, high)

    def encode(self, rows: Sequence[float]) -> list[float]:
        """The similarity of each row.

        Raises:
            RowError: A score is not finite.
        """
        scores = np.array(rows, dtype=np.float64)
        if not np.isfinite(scores).all():
            position = int(np.flatnonzero(~np.isfinite(scores))[0])
            raise RowError(
                position, self.role, format_error(self.role, "must be finite", value=float(scores[position]))
            )
        if self.threshold is not None:
            return [1.0 if score >= self.threshold else -1.0 for score in scores]
        assert self.range is not None, "neither fitted nor loaded"
        low, high = self.range
        scaled: list[float] = (2 * ((scores - low) / (high - low)).clip(0, 1) - 1).tolist()
        return scaled

    @staticmethod
    def target(similarities: Sequence[float]) -> Tensor:
        """The target of encoded rows, float32 (B,)."""
        return torch.from_numpy(np.array(similarities, dtype=np.float32))

    def state_dict(self) -> dict[str, Any]:
        return {"score_range": None if self.range is None else list(self.range)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.range = None if state["score_range"] is None else tuple(state["score_range"])
