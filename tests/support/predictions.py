"""Predictions of a task from outputs that a test makes up."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trainer.protocols import Batching, Task


def predict(
    task: Task,
    output: Tensor,
    rows: Mapping[str, Sequence[Any]] | None = None,
    batching: Batching = "packed",
    *,
    top: int = 1,
) -> list[dict[str, Any]]:
    """Return the predictions for an output; `rows` are for tasks whose predictions repeat the input."""
    encoded = {} if rows is None else task.encode_inputs(rows)
    return task.predictions(output, rows=rows or {}, encoded=encoded, batching=batching, top=top)
