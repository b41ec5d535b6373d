"""The predictions of an evaluation: `eval/<split>.predictions.parquet` in the run folder, one row per sample.

Columns, the same for every task:

* `row` (int64): the position of the sample in its split;
* `file` (string), `line` (int64): the file that the sample comes from, and the number of its record there, from 1;
  null if the source does not know them, or if a key of the data refers to an environment variable;
* `target`, `prediction`: names of classes (string) or tags (lists of strings), lists of label names, numbers in the
  user's units (float64, or lists if a sample has several), spans (lists of strings `first:last:label`, the positions of
  the first and the last token, from 0). The prediction of a pair of texts is its cosine, the target
  its similarity, or null if the pair has none. Both are null for language models;
* `probabilities` (list of float32): of each class or label, in the order of `classes`; null for other tasks. Of more
  than 1,000 classes, only the 10 largest;
* `top_classes` (list of int32): the positions in `classes` that `probabilities` belong to; null if all have one;
* `loss` (float32): the mean loss of the sample's targets; null if the loss is a statistic of a batch, or reads inputs;
* `num_targets` (int32): the terms of the loss, such as the tokens of a text; its mean over a split is weighted by them;
* `rank` (int32): the rank of a text's positive among all positives of the split by cosine, from 1, if a task retrieves
  positives; null for other tasks;
* `num_right` (int32): the targets of a token model whose class has the largest score; of texts with hard negatives, 1
  if the positive is nearer than all of them, else 0; the spans of a text that were found; null for other tasks;
* `closeness` (float64): the mean of exp(-2 |a - b|^2) over the vectors of all other rows, for embeddings without
  scores; null for other tasks;
* `input_digest` (int64): identifies rows with equal inputs; white space does not distinguish texts.

Files of earlier versions lack the last column, or the last two.

The metadata of the file has the key `trainer.inputs`, too: a JSON object with what the model read in the 20 worst rows,
by the number of the row: `{"text": ...}`, shortened, `{"image": ...}`, a small PNG in base64, or `{"columns": ...}`,
a line `name: value` for each column. For spans also the words of missed and wrong spans by their tokens `first:last`.

The schema's metadata has one key, `trainer.predictions`, with a JSON object: `format` (1), `kind` (`class`, `labels`,
`tags`, `spans`, `values`, `similarity` or `tokens`), `classes` (names, or null), and `split`, `step`, `weights`,
`precision`, `digest` and, for other rows than the run's own, `data`, as in `eval/<split>.json`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from trainer.errors import CheckpointError, format_error, show_value
from trainer.files.atomic_io import replaced_file
from trainer.layout import Document
from trainer.shapes import DocumentError, check_shape, parse_json, to_json

if TYPE_CHECKING:
    import pyarrow

Kind = Literal["class", "labels", "tags", "spans", "values", "similarity", "tokens"]

MAX_CLASSES: Final = 1_000
"""Probabilities of more classes are not stored, only the probabilities of the `TOP` most likely ones."""

TOP: Final = 10

GROUP_ROWS: Final = 4_096
"""Rows that are written at once, whatever the batches: the bytes of a file do not depend on the number of devices."""

_PLACE: Final = re.compile("[0-9]{1,9}")
"""The position of a token."""

_SUFFIX = ".predictions.parquet"
_KEY = b"trainer.predictions"
_INPUTS_KEY = b"trainer.inputs"
_FORMAT = 1
_ADDED_COLUMNS: Final = 2
"""The number of columns at the end that files of earlier versions may lack."""

_ABOUT: Final = {"kind": str, "classes": ([str], None), "split?": str, "step?": int, "weights?": str}
"""The shape of the metadata, as far as it is used."""


def predictions_file(evaluation: Path) -> Path:
    """Return the file of the predictions that belong to `eval/<split>.json`."""
    return evaluation.with_name(evaluation.stem + _SUFFIX)


def predictions_schema(kind: Kind, *, several_values: bool, about: Document) -> pyarrow.Schema:
    """Return the schema of a file.

    Args:
        kind: The kind of the predictions.
        several_values: A sample has several numbers.
        about: The rest of the metadata.
    """
    import pyarrow as pa

    number = pa.list_(pa.float64()) if several_values else pa.float64()
    names = pa.list_(pa.string())
    types = {"class": pa.string(), "labels": names, "tags": names, "spans": names, "tokens": pa.null()}
    answer = types.get(kind, number)
    columns = {
        "row": pa.int64(),
        "file": pa.string(),
        "line": pa.int64(),
        "target": answer,
        "prediction": answer,
        "probabilities": pa.list_(pa.float32()),
        "top_classes": pa.list_(pa.int32()),
        "loss": pa.float32(),
        "num_targets": pa.int32(),
        "num_right": pa.int32(),
        "rank": pa.int32(),
        "closeness": pa.float64(),
        "input_digest": pa.int64(),
    }
    metadata = to_json({"format": _FORMAT, "kind": kind, **about}, ensure_ascii=False)
    return pa.schema(columns.items(), metadata={_KEY: metadata.encode()})


class PredictionsWriter:
    """Writes rows in groups of a fixed size, so that memory is bounded.

    Args:
        file: A Parquet writer.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._pending: list[pyarrow.Table] = []
        self._num_pending = 0

    def write(self, rows: pyarrow.Table) -> None:
        """Add rows."""
        self._pending.append(rows)
        self._num_pending += len(rows)
        if self._num_pending >= GROUP_ROWS:
            self._write_groups(GROUP_ROWS)

    def keep_inputs(self, inputs: Mapping[int, Mapping[str, str]]) -> None:
        """Keep what the model read in some rows."""
        text = to_json({str(row): values for row, values in inputs.items()}, ensure_ascii=False)
        self._file.add_key_value_metadata({_INPUTS_KEY: text.encode("utf-8", "replace")})

    def finish(self) -> None:
        """Write the rows that are left."""
        if self._num_pending:
            self._write_groups(1)

    def _write_groups(self, at_least: int) -> None:
        import pyarrow as pa

        rows = pa.concat_tables(self._pending)
        while len(rows) >= at_least:
            self._file.write_table(rows[:GROUP_ROWS])
            rows = rows[GROUP_ROWS:]
        self._pending, self._num_pending = [rows], len(rows)


@contextmanager
def predictions_writer(path: Path, schema: pyarrow.Schema) -> Iterator[PredictionsWriter]:
    """Yield a writer of a file that takes the place of `path` when the block ends without an error."""
    from pyarrow import parquet

    with replaced_file(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as parquet_file:
        writer = PredictionsWriter(parquet_file)
        yield writer
        writer.finish()


def read_about(path: Path) -> Document:
    """Return the metadata of a file of predictions: `kind`, `classes` and the others.

    Raises:
        CheckpointError: It is no such file, or one of a later version.
    """
    from pyarrow import parquet

    with _damage_named(path, "cannot be read as Parquet"):
        about = parse_json((parquet.read_schema(path).metadata or {}).get(_KEY, b"null"))
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        raise _unreadable(path, "is not a file of predictions that this version can read")
    with _damage_named(path):
        check_shape(about, _ABOUT)
    return about


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pyarrow.RecordBatch]:
    """Yield some columns of a file of predictions in batches, so that memory is bounded.

    Raises:
        CheckpointError: It is no such file, it is damaged, or one of a later version.
    """
    from pyarrow import parquet

    about = read_about(path)
    with _damage_named(path), parquet.ParquetFile(path) as file:
        _check_columns(file.schema_arrow, about)
        for batch in file.iter_batches(GROUP_ROWS, columns=list(columns)):
            batch.validate(full=True)  # also that texts are UTF-8
            _check_values(batch, about)
            yield batch


def _check_columns(schema: pyarrow.Schema, about: Document) -> None:
    import pyarrow as pa

    complete = [[*predictions_schema(about["kind"], several_values=each, about={})] for each in (False, True)]
    known = [fields[: len(fields) - missing] for fields in complete for missing in range(_ADDED_COLUMNS + 1)]
    if not any(schema.equals(pa.schema(fields)) for fields in known):
        raise ValueError("the columns are not columns of predictions")


def _check_values(rows: pyarrow.Table | pyarrow.RecordBatch, about: Document) -> None:
    """Check what the readers of predictions rely on; the file may come from anyone.

    Raises:
        DocumentError: A value is not one that an evaluation writes.
    """
    import pyarrow as pa
    from pyarrow import compute

    if len({*(about["classes"] or ())}) < len(about["classes"] or ()):
        raise DocumentError("classes: must not contain a name twice")
    columns = {
        name: column if isinstance(column, pa.Array) else column.combine_chunks()
        for name, column in zip(rows.schema.names, rows.columns, strict=True)
    }
    for name in ("row", "num_targets"):
        if name in columns and columns[name].null_count:
            raise DocumentError(f"{name}: must not be null")
    lists = {name: column for name, column in columns.items() if pa.types.is_list(column.type)}
    for name, column in lists.items():
        if column.flatten().null_count:
            raise DocumentError(f"{name}: a list must not contain null")
    _check_probabilities(columns, about)
    if "rank" in columns and compute.any(compute.less(columns["rank"], 1)).as_py():
        raise DocumentError("rank: must be at least 1")
    answers = {name: columns[name] for name in ("target", "prediction") if name in columns}
    if about["kind"] == "tags" and len(answers) == 2:
        target, prediction = (compute.list_value_length(column).to_pylist() for column in answers.values())
        if any(size is not None and size != (other or 0) for size, other in zip(target, prediction, strict=True)):
            raise DocumentError("prediction: must have a tag for each tag of the target")
    for name, column in answers.items() if about["kind"] in ("class", "labels", "tags", "spans") else ():
        _check_classes(name, column, about)


def _check_probabilities(columns: Mapping[str, Any], about: Document) -> None:
    """Check that there is a probability of each class, or of as many classes in each row as `top_classes` has."""
    from pyarrow import compute

    lists = [columns[name] for name in ("probabilities", "top_classes") if name in columns]
    sizes = {size for column in lists for size in compute.unique(compute.list_value_length(column)).to_pylist()}
    sizes -= {None}
    if len(sizes) > 1 or 0 in sizes:
        raise DocumentError("probabilities: must have as many numbers in each row")
    if len(lists) == 2 and sizes:
        probabilities, top = lists
        if top.null_count == len(top) and about["classes"] is not None and sizes != {len(about["classes"])}:
            raise DocumentError("probabilities: must contain one of each class")
        if top.null_count not in (len(top), probabilities.null_count):
            raise DocumentError("top_classes: must not be null")


def _check_classes(name: str, column: Any, about: Document) -> None:
    """Check that all targets or predictions are classes of the metadata, and those of spans are spans."""
    import pyarrow as pa

    values = column.flatten() if pa.types.is_list(column.type) else column
    names = values.unique().to_pylist()  # an array of the classes, to compare with, would load pandas
    if about["kind"] == "spans":
        names = [split_span(each)[2] for each in names]
    if about["classes"] is None:
        return
    known = {None, *about["classes"]}
    if unknown := [each for each in names if each not in known]:
        raise DocumentError(f"{name}: must be one of the classes, got {show_value(unknown[0])}")


def format_span(first: int, last: int, label: str) -> str:
    """Return a span as the text `first:last:label`."""
    return f"{first}:{last}:{label}"


def split_span(text: str) -> tuple[int, int, str]:
    """Return the first token, the last token and the label of a span.

    Raises:
        DocumentError: The text is no span.
    """
    first, last, label = [*text.split(":", 2), "", ""][:3]
    if not (_PLACE.fullmatch(first) and _PLACE.fullmatch(last) and label):
        raise DocumentError(f"must be a span such as 0:2:person, got {show_value(text)}")
    return int(first), int(last), label


def read_inputs(path: Path) -> dict[int, dict[str, str]]:
    """Return what the model read in the worst rows; empty if the file does not say so.

    Raises:
        CheckpointError: It is no file of predictions, or it is damaged.
    """
    from pyarrow import parquet

    with _damage_named(path):
        metadata = parquet.read_metadata(path).metadata or {}
        inputs = parse_json(metadata.get(_INPUTS_KEY, b"{}"), {str: {str: str}})
        return {int(row): values for row, values in inputs.items()}


def read_predictions(path: Path, columns: list[str] | None = None) -> tuple[pyarrow.Table, Document]:
    """Return the rows of a file of predictions, or some of their columns, and its metadata.

    Raises:
        CheckpointError: It is no such file, it is damaged, or one of a later version.
    """
    from pyarrow import parquet

    about = read_about(path)
    with _damage_named(path):
        schema = parquet.read_schema(path)
        _check_columns(schema, about)
        own = None if columns is None else [name for name in columns if name in schema.names]
        table = parquet.read_table(path, columns=own)
        table.validate(full=True)
        _check_values(table, about)
    return table, about


@contextmanager
def _damage_named(path: Path, problem: str = "is damaged") -> Iterator[None]:
    from pyarrow import ArrowException

    try:
        yield
    except DocumentError as error:
        raise _unreadable(path, f"is damaged: {error}") from error
    except (OSError, ValueError, ArrowException) as error:
        raise _unreadable(path, problem) from error


def _unreadable(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(format_error(str(path), problem, "Evaluate again: trainer eval"))


def is_predictions(path: Path) -> bool:
    """Return whether a file contains predictions of an evaluation."""
    try:
        read_about(path)
    except CheckpointError:
        return False
    return True
