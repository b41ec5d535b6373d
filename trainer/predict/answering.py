"""Rows to answers: in windows, within which rows of like length share a batch; the answers come in the rows' order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trainer.errors import ConfigError, RowError, format_error
from trainer.predict.asked import Row, Rows
from trainer.protocols import Batching, Task

if TYPE_CHECKING:
    from torch import Tensor

Forward = Callable[[Mapping[str, "Tensor"]], "Tensor"]
Answer = dict[str, Any]
Window = list[tuple[Row, Answer]]

_MEMBERS = ("input_columns", "encode_inputs", "model_inputs", "predictions")
_BATCHES = 16
_CHARACTERS = 4_000_000
"""A window of texts ends after so many batches or characters; among more rows, lengths are hardly more alike."""

_OUTPUTS = 1 << 26
"""Numbers that the outputs of a batch may have: 256 MiB in float32."""


@dataclass
class Tally:
    """What happened to the rows so far.

    Attributes:
        num_rows: How many there were.
        num_faults: Those that could not be used.
        num_truncated: Those that were longer than what the model reads.
    """

    num_rows: int = 0
    num_faults: int = 0
    num_truncated: int = 0


def check_task(task: object) -> None:
    """Raises ConfigError where a task of the user's own has not what answers need."""
    lacking = [name for name in _MEMBERS if not hasattr(task, name)]
    if lacking:
        problem = f"answers no rows: {type(task).__name__} lacks {', '.join(lacking)}"
        raise ConfigError(format_error("task", problem, "trainer/protocols.py says what they are"))


@dataclass(frozen=True)
class Answering:
    """What answers rows.

    Attributes:
        task: Fitted.
        forward: The model: inputs on the host to outputs on any device.
        batching: The layout of the inputs that it takes.
        batch_size: Rows of a batch at most.
        top: How many of the likeliest are shown.
    """

    task: Task
    forward: Forward
    batching: Batching
    batch_size: int
    top: int

    def windows(self, rows: Rows, tally: Tally) -> Iterator[Window]:
        """Each row with its answer, or with `{"error": what is wrong with it}`, in groups that are answered at once."""
        for window in self._asked(rows):
            answers = self._answers(window, tally)
            faults = [answer.get("error") for answer in answers]
            tally.num_rows += len(window)
            tally.num_faults += sum(fault is not None for fault in faults)
            yield [
                (row._replace(fault=fault), {**row.named, **answer})
                for row, answer, fault in zip(window, answers, faults, strict=True)
            ]

    def _asked(self, rows: Rows) -> Iterator[list[Row]]:
        size = self.batch_size * (_BATCHES if self.task.inputs == "tokens" else 1)
        window: list[Row] = []
        characters = 0
        for row in rows:
            if row is not None:
                window.append(row)
                characters += sum(map(_characters, (row.values or {}).values()))
            if window and (row is None or len(window) == size or characters > _CHARACTERS):
                yield window
                window, characters = [], 0
        if window:
            yield window

    def _answers(self, window: Sequence[Row], tally: Tally) -> list[Answer]:
        answers: list[Answer] = [{"error": row.fault} for row in window]
        good = [position for position, row in enumerate(window) if row.values is not None]
        columns = {
            role: [(window[position].values or {})[role] for position in good] for role in self.task.input_columns()
        }
        encoded, faults = self._encoded(columns, len(good))
        for place, fault in faults.items():
            answers[good[place]] = {"error": f"{window[good[place]].spot}: {fault}"}
        tally.num_truncated += sum(map(bool, encoded.pop("truncated", ())))
        kept = [place for place in range(len(good)) if place not in faults]
        for part in self._batches(encoded, len(kept)):
            rows = {role: [values[kept[index]] for index in part] for role, values in columns.items()}
            batch = {name: [values[index] for index in part] for name, values in encoded.items()}
            output = self.forward(self.task.model_inputs(batch, self.batching))
            found = self.task.predictions(output, rows=rows, encoded=batch, batching=self.batching, top=self.top)
            for index, answer in zip(part, found, strict=True):
                answers[good[kept[index]]] = answer
        return answers

    def _encoded(self, columns: Mapping[str, Sequence[Any]], count: int) -> tuple[dict[str, list[Any]], dict[int, str]]:
        """The encoded rows that can be, and what is wrong with the others, by their places."""
        faults: dict[int, str] = {}
        if not count:
            return {}, faults
        try:
            encoded = self.task.encode_inputs(columns)
        except RowError:
            encoded = {}
            for place in range(count):
                try:
                    one = self.task.encode_inputs({role: values[place : place + 1] for role, values in columns.items()})
                except RowError as error:
                    faults[place] = str(error)
                    continue
                for name, values in one.items():
                    encoded.setdefault(name, []).extend(values)
        empty = [index for index, ids in enumerate(encoded.get("input_ids", ())) if not len(ids)]
        if empty:
            places = [place for place in range(count) if place not in faults]
            faults |= {places[index]: "text: the tokenizer leaves nothing of it." for index in empty}
            left_out = {*empty}
            encoded = {
                name: [value for index, value in enumerate(values) if index not in left_out]
                for name, values in encoded.items()
            }
        return encoded, faults

    def _batches(self, encoded: Mapping[str, Sequence[Any]], count: int) -> Iterator[list[int]]:
        """Positions of like length, the longest first, so that a lack of memory shows at once."""
        lengths = [len(ids) for ids in encoded["input_ids"]] if "input_ids" in encoded else [1] * count
        order = sorted(range(count), key=lambda index: -lengths[index])
        info = self.task.info()
        outputs = (info.num_outputs or 0) if info.output_level == "token" else 0
        start = 0
        while start < count:
            most = _OUTPUTS // (outputs * lengths[order[start]]) if outputs else count
            stop = start + max(1, min(self.batch_size, most))
            yield order[start:stop]
            start = stop


def _characters(value: Any) -> int:
    return len(value) if isinstance(value, str) else sum(map(len, value)) if isinstance(value, list) else 0
