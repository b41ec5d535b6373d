"""Events of a run: the file `metrics.jsonl`, their scalars by tag, and a report that passes them to several sinks."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Protocol

from trainer.documents import EVENT, read_file, unusable
from trainer.files.atomic_io import append
from trainer.files.storage_errors import naming_errors
from trainer.layout import Document
from trainer.protocols import Report
from trainer.shapes import DocumentError, parse_json

logger = logging.getLogger(__name__)

_CUT = "%s: line %d is cut and is left out"
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class Sink(Report, Protocol):
    """A report that holds resources open."""

    def close(self) -> None:
        """Release the resources; a second call does nothing."""
        ...


class Reports:
    """A report that passes each event to its sinks in order, and closes all of them at the end of its `with` block.

    Any thread may log: a checkpoint is reported by the thread that has made it durable.

    Args:
        sinks: The sinks; None, a sink that is switched off, is ignored.
    """

    def __init__(self, *sinks: Sink | None) -> None:
        self._sinks: list[Sink] = []
        self._lock = Lock()
        self._closing = ExitStack()
        self.add(*sinks)

    def add(self, *sinks: Sink | None) -> None:
        """Add sinks that receive every event from now on."""
        for sink in sinks:
            if sink is not None:
                self._sinks.append(sink)
                self._closing.callback(sink.close)

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        with self._lock:
            for sink in self._sinks:
                sink.log(event, step=step, epoch=epoch, values=values)

    def __enter__(self) -> Reports:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # The error is passed on, so a sink that cannot be closed does not hide it.
        self._closing.__exit__(error_type, error, traceback)


class JsonLines:
    """Appends events to a file, one JSON object per line; lines are never rewritten.

    Each line is passed to the operating system at once, so a killed process loses no event that it logged. Floats that
    JSON cannot express are written as the strings "nan", "inf" and "-inf".

    Args:
        path: The file, created if it does not exist, in an existing folder. If it ends in the middle of a line because
            the process or the machine stopped there, new events start on a new line.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with naming_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._append(b"\n")

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        """Append a line; `values` are floats, integers, strings, booleans, None, lists of strings or mappings."""
        head = {"event": event, "step": step, "epoch": epoch}
        assert not head.keys() & values.keys(), f"an event's values cannot be named {sorted(head)}"
        record = {name: _to_json(value) for name, value in (head | dict(values)).items()}
        self._append(json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, line: bytes) -> None:
        append(self._file, self._path, line)


def read_events(path: Path) -> list[Document]:
    """Return the events of `metrics.jsonl` as if the run had never stopped.

    They are in the order of their steps: the event of a checkpoint is logged when the checkpoint is durable, which may
    be some steps later. A line `{"event": "resume", "step": N}` cancels the earlier lines of steps after N, which the
    resumed run logs again. The strings "nan", "inf" and "-inf" become floats. Incomplete lines (see `JsonLines`) are
    ignored.

    Raises:
        CheckpointError: The file cannot be read, or a complete line is no event.
    """
    events: list[Document] = []
    cut = 0
    *lines, last = read_file(path, "Name another run").split(b"\n")
    for number, line in enumerate([*lines, last], 1):
        try:
            record = _parse(line)
        except DocumentError as error:
            raise unusable(path, DocumentError(f"line {number}: {error}"), "Delete this line") from error
        if record is None:
            cut = number if line else cut
            continue
        if record["event"] == "resume":
            cut = 0  # the run was killed while it wrote the line
            events = [event for event in events if event["step"] <= record["step"]]
        elif cut:
            logger.warning(_CUT, path, cut)
            cut = 0
        events.append(record)
    if cut and not last:  # a process that is killed leaves no end of the line
        logger.warning(_CUT, path, cut)
    return sorted(events, key=lambda event: event["step"])


def _parse(line: bytes) -> Document | None:
    try:
        record = parse_json(line, EVENT)
    except DocumentError as error:
        # A line that was cut, perhaps in the middle of a character.
        if isinstance(error.__cause__, ValueError) and not line.endswith(b"}"):
            return None
        raise
    return {name: _NON_FINITE.get(value, value) if isinstance(value, str) else value for name, value in record.items()}


def _to_json(value: object) -> object:
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value


def name_scalars(event: str, values: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers of an event by tag, such as `train/loss` or `validation-ema/loss`."""
    if event not in ("train", "eval"):
        return {}
    prefix = str(values.get("split", event))
    prefix = f"{prefix}-ema" if values.get("weights") == "ema" else prefix
    flat = dict(values)
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{key}": item for key, item in value.items()}
    return {f"{prefix}/{name}": value for name, value in flat.items() if isinstance(value, int | float)}
