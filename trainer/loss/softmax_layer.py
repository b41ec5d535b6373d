"""Shared parts of the losses with their own output layer, which score the classes from the model's features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from trainer.errors import ConfigError, format_error
from trainer.loss.classification import count_not_ignored, flatten_rows, promote_to_float32
from trainer.targets import check_classes


class SoftmaxLayerLoss(nn.Module):
    """Base class of the losses of features (..., D) with classes (...,).

    Args:
        in_features: Features per target D that the model returns.
        ignore_index: Target that is ignored.
        num_outputs: Number of classes C, at least 2.
    """

    targets: ClassVar[tuple[str, ...]] = ("class",)

    def __init__(self, in_features: int, ignore_index: int, num_outputs: int) -> None:
        super().__init__()
        self.in_features = in_features
        self.ignore_index = ignore_index
        self.num_outputs = num_outputs

    def check(self, target: Tensor) -> None:
        """Raise RowError unless `target` contains only classes and `ignore_index`."""
        check_classes(target, self.num_outputs, self.ignore_index)

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the targets (...,) that are not ignored: int64, shape ()."""
        return count_not_ignored(target, self.ignore_index)

    def flatten_features(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Reshape features (..., D) and targets (...,) to (N, D), at least float32, and (N,).

        Raises:
            ValueError: The output does not have one row of D features for each target.
        """
        rows, classes = flatten_rows(output, target)
        if rows.shape[1] != self.in_features:
            problem = f"does not have {self.in_features} features in its last axis"
            raise ValueError(f"an output {tuple(output.shape)} {problem}")
        return promote_to_float32(rows), classes


def require_class_counts(num_outputs: int | None, class_counts: Sequence[int] | None) -> list[int]:
    """Return the training targets of each class; 1 each if only the number of classes is known.

    Raises:
        ConfigError: There are fewer than two classes, or the task does not know its classes.
    """
    if class_counts is None and num_outputs is None:
        raise ConfigError(format_error("_target_", "needs a task that knows its classes", "Use loss=cross_entropy"))
    counts = [1] * (num_outputs or 0) if class_counts is None else list(class_counts)
    assert num_outputs in (None, len(counts)), "one count for each class"
    if len(counts) < 2:
        raise ConfigError(format_error("_target_", "needs at least two classes", value=len(counts)))
    return counts
