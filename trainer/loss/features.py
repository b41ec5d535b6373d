"""What the losses share that score the classes themselves, from the model's features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trainer.errors import ConfigError, format_error
from trainer.loss.classification import at_least_float32, flatten


def counts_of_classes(num_outputs: int | None, class_counts: Sequence[int] | None) -> list[int]:
    """The training targets of each class; 1 each where only their number is known.

    Raises:
        ConfigError: There are not two classes, or the task does not know its classes.
    """
    if class_counts is None and num_outputs is None:
        raise ConfigError(format_error("_target_", "needs a task that knows its classes", "Use loss=cross_entropy"))
    counts = [1] * (num_outputs or 0) if class_counts is None else list(class_counts)
    assert num_outputs in (None, len(counts)), "one count for each class"
    if len(counts) < 2:
        raise ConfigError(format_error("_target_", "needs at least two classes", value=len(counts)))
    return counts


def feature_rows(output: Tensor, target: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Features (..., D) as rows (N, D), at least float32, and their targets (...,) as (N,).

    Raises:
        ValueError: There is not one row for each target, or it has not `width` features.
    """
    rows, classes = flatten(output, target)
    if rows.shape[1] != width:
        raise ValueError(f"an output {tuple(output.shape)} has not {width} features in its last axis")
    return at_least_float32(rows), classes
