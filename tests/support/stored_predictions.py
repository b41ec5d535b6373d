"""Files of predictions made by hand."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from trainer.predictions import Kind, predictions_schema, predictions_writer


def write_predictions(
    folder: Path,
    kind: Kind,
    *,
    classes: list[str] | None = None,
    name: str = "test",
    inputs: dict[int, dict[str, str]] | None = None,
    **columns: list[Any],
) -> Path:
    """Write `<name>.predictions.parquet`; columns that are not given are null; a row has its number and one target."""
    several = any(isinstance(value, list) for value in columns.get("target", []))
    about = {"classes": classes, "split": name, "step": 8, "weights": "raw", "digest": ""}
    schema = predictions_schema(kind, several_values=several, about=about)
    count = len(next(iter(columns.values())))
    columns = {"row": list(range(count)), "num_targets": [1] * count, **columns}
    arrays = [
        pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
        for field in schema
    ]
    folder.mkdir(exist_ok=True)
    file = folder / f"{name}.predictions.parquet"
    with predictions_writer(file, schema) as writer:
        writer.write(pa.Table.from_arrays(arrays, schema=schema))
        if inputs is not None:
            writer.keep_inputs(inputs)
    return file
