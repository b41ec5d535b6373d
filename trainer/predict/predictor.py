"""Predictions for rows, computed in windows: in a window, rows of similar length share a batch, and the predictions
come in the order of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING

from trainer.errors import ConfigError, RowError, format_error, show_value
from trainer.predict.input_rows import InputRow, InputRows
from trainer.protocols import Batching, Columns, EncodedColumns, HasCategories, Prediction, Task
from trainer.targets import calibrate_output

if TYPE_CHECKING:
    from torch import Tensor

Forward = Callable[[Mapping[str, "Tensor"]], "Tensor"]
Window = list[tuple[InputRow, Prediction]]

_TASK_METHODS = ("input_columns", "encode_inputs", "model_inputs", "predictions")
_WINDOW_BATCHES = 16
_WINDOW_CHARACTERS = 4_000_000
"""A window of texts ends after this many batches or characters: with more rows, lengths would hardly be closer."""

_MAX_UNKNOWN = 3
"""Unknown categories that are named."""

_MAX_OUTPUTS = 1 << 26
"""Largest number of outputs of a batch: 256 MiB in float32."""


@dataclass
class RowCounts:
    """Counts of the rows so far.

    Attributes:
        num_rows: All rows.
        num_errors: Rows that could not be used.
        num_truncated: Rows longer than the model reads.
        num_unknown: Rows with a category that has no feature of its own.
        unknown: The first of these categories by column and value, with the first row of each.
    """

    num_rows: int = 0
    num_errors: int = 0
    num_truncated: int = 0
    num_unknown: int = 0
    unknown: dict[tuple[str, str], str] = field(default_factory=dict)

    def add_unknown(self, categories: Mapping[str, str], location: str) -> None:
        """Add the unknown categories of a row by column name."""
        for category in categories.items():
            if len(self.unknown) < _MAX_UNKNOWN:
                self.unknown.setdefault(category, location)


def check_task(task: object) -> None:
    """Raise ConfigError if a task of the user's own lacks the methods that predictions need."""
    missing = [name for name in _TASK_METHODS if not hasattr(task, name)]
    if missing:
        problem = f"{type(task).__name__} cannot predict, it has no {', '.join(missing)}"
        raise ConfigError(format_error("task", problem, "Add the methods, see the protocol Task in trainer/protocols"))


@dataclass(frozen=True)
class Predictor:
    """A model with everything that turns rows into predictions.

    Attributes:
        task: The fitted task.
        forward: The model: inputs on the host to outputs on any device.
        batching: The layout of the model's inputs.
        batch_size: Largest number of rows of a batch.
        top: Number of most likely classes or tokens to show.
        context: Makes the context in which outputs are computed and read. The outputs of an artifact may be of any type
            and shape; its context reports the exceptions that they cause.
    """

    task: Task
    forward: Forward
    batching: Batching
    batch_size: int
    top: int
    context: Callable[[], AbstractContextManager[None]] = nullcontext

    def predict(self, rows: InputRows, counts: RowCounts) -> Iterator[Window]:
        """Yield each row with its prediction, or with `{"error": message}`, in groups that are computed together."""
        for window in self._group(rows):
            predictions = self._predict_window(window, counts)
            errors = [prediction.get("error") for prediction in predictions]
            counts.num_rows += len(window)
            counts.num_errors += sum(error is not None for error in errors)
            yield [
                (row._replace(error=error), {**row.identity, **prediction})
                for row, prediction, error in zip(window, predictions, errors, strict=True)
            ]

    def _group(self, rows: InputRows) -> Iterator[list[InputRow]]:
        size = self.batch_size * (_WINDOW_BATCHES if self.task.inputs == "tokens" else 1)
        window: list[InputRow] = []
        characters = 0
        for row in rows:
            if row is not None:
                window.append(row)
                characters += sum(map(_count_characters, (row.values or {}).values()))
            if window and (row is None or len(window) == size or characters > _WINDOW_CHARACTERS):
                yield window
                window, characters = [], 0
        if window:
            yield window

    def _predict_window(self, window: Sequence[InputRow], counts: RowCounts) -> list[Prediction]:
        predictions: list[Prediction] = [{"error": row.error} for row in window]
        usable = [position for position, row in enumerate(window) if row.values is not None]
        columns = {
            role: [(window[position].values or {})[role] for position in usable] for role in self.task.input_columns()
        }
        encoded, errors = self._encode(columns, len(usable))
        for index, error in errors.items():
            location = window[usable[index]].location  # may be the file that is the value
            reason = error.replace(f", got {show_value(location)}", "")
            predictions[usable[index]] = {"error": f"{location}: {reason}"}
        counts.num_truncated += sum(map(bool, encoded.pop("truncated", ())))
        kept = [index for index in range(len(usable)) if index not in errors]
        if "features" in encoded:
            unknown = [usable[kept[index]] for index, number in enumerate(encoded.pop("unknown", ())) if number]
            counts.num_unknown += len(unknown)
            if isinstance(self.task, HasCategories) and len(counts.unknown) < _MAX_UNKNOWN:
                for row in (window[position] for position in unknown):
                    counts.add_unknown(self.task.unknown_categories((row.values or {})["features"]), row.location)
        for indices in self._batch_indices(encoded, len(kept)):
            rows = {role: [values[kept[index]] for index in indices] for role, values in columns.items()}
            batch = {name: [values[index] for index in indices] for name, values in encoded.items()}
            with self.context():
                inputs = self.task.model_inputs(batch, self.batching)
                output = calibrate_output(self.task, self.forward(inputs))
                batch_predictions = self.task.predictions(
                    output, rows=rows, encoded=batch, batching=self.batching, top=self.top
                )
                undefined = find_undefined(output, inputs)
                for index, prediction in zip(indices, batch_predictions, strict=True):
                    predictions[usable[kept[index]]] = prediction
            # Half precision may overflow; the answers to such a row would be any class and no probability.
            for index in compress(indices, undefined):
                position = usable[kept[index]]
                predictions[position] = {"error": f"{window[position].location}: the output of the model is NaN."}
        return predictions

    def _encode(self, columns: Columns, count: int) -> tuple[EncodedColumns, dict[int, str]]:
        """Return the encoded rows, and the errors of rows that cannot be encoded by their index."""
        errors: dict[int, str] = {}
        if not count:
            return {}, errors
        try:
            encoded = self.task.encode_inputs(columns)
        except RowError:
            encoded = {}
            for index in range(count):
                try:
                    one = self.task.encode_inputs({role: values[index : index + 1] for role, values in columns.items()})
                except RowError as error:
                    errors[index] = str(error)
                    continue
                for name, values in one.items():
                    encoded.setdefault(name, []).extend(values)
        empty = {index for index, ids in enumerate(encoded.get("input_ids", ())) if not len(ids)}
        if empty:
            encodable = [index for index in range(count) if index not in errors]
            errors |= {encodable[index]: "text: is empty after tokenization." for index in empty}
            encoded = {
                name: [value for index, value in enumerate(values) if index not in empty]
                for name, values in encoded.items()
            }
        return encoded, errors

    def _batch_indices(self, encoded: Columns, count: int) -> Iterator[list[int]]:
        """Yield batches of rows of similar length, the longest first so that too little memory shows at once."""
        lengths = [len(ids) for ids in encoded["input_ids"]] if "input_ids" in encoded else [1] * count
        order = sorted(range(count), key=lambda index: -lengths[index])
        info = self.task.info()
        outputs = (info.num_outputs or 0) if info.output_level == "token" else 0
        start = 0
        while start < count:
            limit = _MAX_OUTPUTS // (outputs * lengths[order[start]]) if outputs else count
            stop = start + max(1, min(self.batch_size, limit))
            yield order[start:stop]
            start = stop


def find_undefined(output: Tensor, inputs: Mapping[str, Tensor]) -> list[bool]:
    """Return whether the outputs of each row contain NaN; nothing for an output of any other shape, which is unknown.

    Args:
        output: One output of each row (B, C), of its tokens (B, T, C) or of its pairs of tokens (B, C, T, T).
        inputs: The inputs of the model, which say which tokens are padding.
    """
    undefined = output.isnan()
    if output.ndim != 2:
        index = inputs.get("output_index")  # of packed inputs
        mask = inputs.get("attention_mask") if index is None else index >= 0
        if mask is None or mask.ndim != 2:
            return []
        (rows, tokens), is_token = mask.shape, (mask > 0).to(output.device)
        if output.ndim == 3 and output.shape[:2] == mask.shape:
            undefined = undefined & is_token[..., None]
        elif output.ndim == 4 and (output.shape[0], *output.shape[2:]) == (rows, tokens, tokens):
            undefined = undefined & (is_token[:, None, :, None] & is_token[:, None, None, :]).triu()
        else:
            return []
    of_rows: list[bool] = undefined.flatten(1).any(1).tolist()
    return of_rows


def _count_characters(value: object) -> int:
    return len(value) if isinstance(value, str) else sum(map(len, value)) if isinstance(value, list) else 0
