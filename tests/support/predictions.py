"""Answers of a task to outputs that a test makes up."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from trainer.protocols import Batching, Task


def answers(
    task: Task,
    output: Tensor,
    rows: Mapping[str, Sequence[Any]] | None = None,
    batching: Batching = "packed",
    *,
    top: int = 1,
) -> list[dict[str, Any]]:
    """The answers for an output; `rows` are for tasks whose answers repeat what was asked."""
    encoded = {} if rows is None else task.encode_inputs(rows)
    return task.predictions(output, rows=rows or {}, encoded=encoded, batching=batching, top=top)
