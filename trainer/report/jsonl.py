"""`metrics.jsonl`: every event of a run, one JSON object a line, appended and never rewritten."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class JsonLines:
    """Appends events to a file.

    A line is handed to the operating system at once, so a killed process loses none that it logged. Floats that
    JSON has no word for are written as the strings "nan", "inf" and "-inf".

    Args:
        path: The file; made when absent, in a folder that exists. When it ends in the middle of a line, because
            the process or the machine died there, new events start on a line of their own.
    """

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        size = os.fstat(self._file).st_size
        if size and os.pread(self._file, 1, size - 1) != b"\n":
            self._append(b"\n")

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        """Appends one line; `values` are floats, integers, strings, booleans, None, lists of strings or mappings."""
        head = {"event": event, "step": step, "epoch": epoch}
        assert not head.keys() & values.keys(), f"an event's values cannot be named {sorted(head)}"
        record = {name: _writable(value) for name, value in (head | dict(values)).items()}
        self._append(json.dumps(record, allow_nan=False, ensure_ascii=False).encode() + b"\n")

    def close(self) -> None:
        """Closes the file; a second call does nothing."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _append(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._file, line) :]


def read(path: Path) -> list[dict[str, Any]]:
    """The events of a run as if it had never stopped.

    A line `{"event": "resume", "step": N}` takes back what was logged before it for steps after N: the run went
    on from there and logs those steps again. The strings "nan", "inf" and "-inf" come back as floats. A line that
    is cut off (see `JsonLines`) is left out.
    """
    events: list[dict[str, Any]] = []
    for line in path.read_bytes().split(b"\n"):
        record = _parse(line)
        if record is None:
            continue
        if record["event"] == "resume":
            events = [event for event in events if event["step"] <= record["step"]]
        events.append(record)
    return events


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:  # not JSON, or cut in the middle of a character
        return None
    return {name: _NON_FINITE.get(value, value) if isinstance(value, str) else value for name, value in record.items()}


def _writable(value: Any) -> Any:
    return str(float(value)) if isinstance(value, float) and not math.isfinite(value) else value
