"""Rows of the evaluation split with what the model makes of them: whoever gets an artifact can see that it is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.export.cases import Forward
from trainer.export.folder import write_json
from trainer.protocols import Columns, HasPredictionRows, Task

ROWS = "golden.json"
ARRAYS = "golden.npz"
TENSORS = "golden.pt"

_MOST_NUMBERS = 2**20
_TOP = 3


def write_golden(stage: Path, task: Task, rows: Sequence[Mapping[str, Any]], pytorch: Forward) -> list[Path]:
    """The rows and the answers to them, the model's inputs and its output: as JSON, as arrays and as tensors.

    Of a model with large outputs, such as a token's logits over a vocabulary, the first rows alone, at least one.

    Args:
        stage: Where to.
        task: Makes inputs of rows and answers of outputs.
        rows: Samples of the evaluation split as the source gave them.
        pytorch: The model.

    Returns:
        `golden.json`, `golden.npz`, `golden.pt`, and `golden-0.png` and so on where rows hold images.
    """
    columns: Columns = {role: [row[role] for row in rows] for role in task.input_columns()}
    if isinstance(task, HasPredictionRows):
        columns = task.prediction_rows(columns)
    count = len(rows)
    while True:
        columns = {role: values[:count] for role, values in columns.items()}
        encoded = task.encode_inputs(columns)
        inputs = task.model_inputs(encoded, "padded")
        output = pytorch(inputs)
        if count == 1 or output.numel() <= _MOST_NUMBERS:
            break
        count -= 1
    answers = task.predictions(output, rows=columns, encoded=encoded, batching="padded", top=_TOP)
    images = _write_images(stage, columns)
    told = [dict(zip(columns, values, strict=True)) for values in zip(*{**columns, **images}.values(), strict=True)]
    told = [{**row.pop("features", {}), **row} for row in told]  # as a file of them has them: column by column
    write_json(stage / ROWS, {"top": _TOP, "rows": told, "answers": answers})
    write_tensors(stage, inputs, output)
    files = [name for names in images.values() for name in names]
    return [stage / name for name in (ROWS, ARRAYS, TENSORS, *files)]


def write_tensors(stage: Path, inputs: Mapping[str, Tensor], output: Tensor) -> None:
    """`input.<name>` and `output`, as arrays for NumPy and as tensors that C++ reads with `torch::jit::pickle_load`."""
    tensors = {**{f"input.{name}": value.contiguous() for name, value in inputs.items()}, "output": output}
    arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
    np.savez(stage / ARRAYS, allow_pickle=False, **arrays)
    with (stage / TENSORS).open("wb") as file:  # of torch's own, a full disk is told as something else
        torch.save(tensors, file)


def _write_images(stage: Path, columns: Columns) -> dict[str, list[str]]:
    """The files of the column `image`, as they were, and their names in its place."""
    names = []
    for number, image in enumerate(columns.get("image", ())):
        path = Path(image["path"] or "")
        name = f"golden-{number}{path.suffix}"
        (stage / name).write_bytes(path.read_bytes() if image["bytes"] is None else image["bytes"])
        names.append(name)
    return {"image": names} if names else {}
