"""The predictions of a sweep over folds: each row by the models that were not trained on it, and its likely errors."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.errors import DataError, format_error
from trainer.files.atomic_io import replaced_file, write_text
from trainer.layout import EVALUATIONS, LABEL_ERRORS, OUT_OF_FOLD, Document
from trainer.predictions import MAX_CLASSES, predictions_file, read_inputs, read_predictions
from trainer.report.label_errors import find_contradictions, find_label_errors, rank_rows
from trainer.report.sweep_table import table_csv

if TYPE_CHECKING:
    import numpy as np
    import pyarrow

COLUMNS = (
    *("finding", "file", "row", "label", "suggested", "probability_of_label", "probability_of_suggested", "loss"),
    "correction",
)
FINDINGS = ("likely wrong", "contradiction", "hard")
"""Why a row is listed: the first reason that holds."""

_ANSWERS = ["file", "line", "target", "prediction", "probabilities", "loss", "input_digest"]


def write_out_of_fold(folder: Path, jobs: Mapping[str, Mapping[str, str]]) -> list[list[object]]:
    """Write the predictions of every row by the models of the other folds, and `label_errors.csv` for classes.

    Args:
        folder: The folder of the sweep.
        jobs: The complete jobs of one setting by name, with the keys that they change.

    Returns:
        The rows of the CSV; none if the sweep has no folds, or the task no classes.

    Raises:
        CheckpointError: A file of predictions cannot be read.
        DataError: The corrections in an earlier CSV cannot be read.
    """
    answers = [(name, *read_predictions(file, _ANSWERS)) for name, file in _find_files(folder, jobs).items()]
    if not answers:
        return []
    classes = sorted({label for _, _, about in answers for label in about["classes"] or ()})
    if any(about["kind"] != "class" for _, _, about in answers) or not 1 < len(classes) <= MAX_CLASSES:
        classes = []
    # The order of the classes may differ from fold to fold.
    tables = [_with_job(_in_order(table, about, classes), name) for name, table, about in answers]
    _write_predictions(folder / OUT_OF_FOLD, tables)
    if not classes:
        return []
    rows = _with_corrections(_find_errors(tables, classes), folder / LABEL_ERRORS)
    write_text(folder / LABEL_ERRORS, table_csv(COLUMNS, rows))
    return rows


def _find_files(folder: Path, jobs: Mapping[str, Mapping[str, str]]) -> dict[str, Path]:
    """Return the file with the predictions of each fold, by the name of its job."""
    files = {
        name: predictions_file(folder / name / EVALUATIONS / "validation.json")
        for name, changes in jobs.items()
        if "data.fold" in changes
    }
    return {name: file for name, file in files.items() if file.is_file()}


def read_fold_inputs(
    folder: Path, jobs: Mapping[str, Mapping[str, str]]
) -> dict[tuple[object, object], Mapping[str, str]]:
    """Return what the models read in the worst rows of each fold, by the file and the number of the row.

    Args:
        folder: The folder of the sweep.
        jobs: As in `write_out_of_fold`.

    Raises:
        CheckpointError: A file of predictions cannot be read.
    """
    inputs: dict[tuple[object, object], Mapping[str, str]] = {}
    for file in _find_files(folder, jobs).values():
        table, _ = read_predictions(file, ["row", "file", "line"])
        places = zip(*(table[name].to_pylist() for name in ("row", "file", "line")), strict=True)
        known = read_inputs(file)
        inputs |= {(path, number): known[row] for row, path, number in places if row in known}
    return inputs


def _with_corrections(rows: list[list[object]], file: Path) -> list[list[object]]:
    """Return the rows with the corrections that the user has written into the file; other rows follow."""
    if not file.is_file():
        return rows
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            earlier = [row for row in csv.reader(text) if len(row) == len(COLUMNS) and row[-1].strip()]
    except (UnicodeDecodeError, csv.Error) as error:
        problem = f"cannot be read as CSV ({error})"
        raise DataError(format_error(str(file), problem, "Save it as CSV in UTF-8, or move it away")) from error
    kept = {tuple(row[1:4]): row for row in earlier if row[-1] != COLUMNS[-1]}
    for new in rows:
        if (row := kept.pop(tuple(map(_as_cell, new[1:4])), None)) is not None:
            new[-1] = row[-1]
    others: list[list[object]] = [[*row] for row in kept.values()]
    return rows + others


def _as_cell(value: object) -> str:
    return "" if value is None else str(value)


def _in_order(table: pyarrow.Table, about: Document, classes: list[str]) -> pyarrow.Table:
    """Return the answers with their probabilities in the order of `classes`, and these names in the metadata."""
    import numpy as np
    import pyarrow as pa

    if not classes:
        return table
    known = _dense(table)
    ordered = np.zeros((len(known), len(classes)), np.float32)
    ordered[:, [classes.index(name) for name in about["classes"]]] = known
    column = table.column_names.index("probabilities")
    return table.set_column(column, "probabilities", pa.array(list(ordered), pa.list_(pa.float32())))


def _dense(table: pyarrow.Table) -> np.ndarray:
    """Return the probabilities (N, C)."""
    flat: Any = table.column("probabilities").combine_chunks().flatten()
    values: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(len(table), -1)
    return values


def _with_job(table: pyarrow.Table, job: str) -> pyarrow.Table:
    import pyarrow as pa

    if _ANSWERS[-1] not in table.column_names:  # of an earlier version
        table = table.append_column(_ANSWERS[-1], pa.nulls(len(table), pa.int64()))
    return table.append_column("job", pa.array([job] * len(table), pa.string())).replace_schema_metadata(None)


def _write_predictions(path: Path, tables: list[pyarrow.Table]) -> None:
    from pyarrow import parquet

    with replaced_file(path) as file, parquet.ParquetWriter(file, tables[0].schema, compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _find_errors(tables: list[pyarrow.Table], classes: list[str]) -> list[list[object]]:
    """Return the rows of the CSV: likely wrong labels, contradictions, then other rows with a wrong prediction.

    Several predictions of a row, by models with different seeds, count with their mean.
    """
    import numpy as np
    import pyarrow as pa

    every = pa.concat_tables([table.filter(table.column("target").is_valid()) for table in tables])
    places = list(zip(every.column("file").to_pylist(), every.column("line").to_pylist(), strict=True))
    # A source that does not know the place of its rows has one prediction of each.
    keys = [place if place[1] is not None else (None, -1 - number) for number, place in enumerate(places)]
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    positions = sorted(first.values())
    index_of = {keys[position]: index for index, position in enumerate(positions)}
    group = np.array([index_of[key] for key in keys])
    counts = np.bincount(group, minlength=len(positions))
    sums = np.zeros((len(positions), len(classes)))
    np.add.at(sums, group, _dense(every))
    losses = np.bincount(group, every.column("loss").to_numpy(zero_copy_only=False), len(positions)) / counts
    probabilities = sums / counts[:, None]
    labels = every.column("target").to_pylist()
    targets = np.array([classes.index(labels[position]) for position in positions])
    is_wrong, suggested = find_label_errors(targets, probabilities)
    digests = every.column("input_digest").to_pylist()
    is_contradiction = find_contradictions(targets, [digests[position] for position in positions])
    reasons = np.where(is_wrong, 0, np.where(is_contradiction, 1, 2))
    is_listed = (reasons < 2) | (probabilities.argmax(axis=1) != targets)
    return [
        [
            FINDINGS[reasons[row]],
            *places[positions[row]],
            classes[targets[row]],
            classes[suggested[row]],
            float(probabilities[row, targets[row]]),
            float(probabilities[row, suggested[row]]),
            float(losses[row]),
            "",
        ]
        for row in rank_rows(targets, probabilities, reasons)
        if is_listed[row]
    ]
