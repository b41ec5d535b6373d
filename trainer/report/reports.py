"""One report that passes every event on to several."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, Protocol

from trainer.protocols import Report


class Sink(Report, Protocol):
    """A report that holds something open."""

    def close(self) -> None:
        """Gives back what it holds; a second call does nothing."""
        ...


class Reports:
    """Passes each event on to its sinks in order, and closes all of them when the `with` block ends, however it ends.

    Args:
        sinks: Where events go; None, a report that is switched off, is left out.
    """

    def __init__(self, *sinks: Sink | None) -> None:
        self._sinks: list[Sink] = []
        self._closing = ExitStack()
        self.add(*sinks)

    def add(self, *sinks: Sink | None) -> None:
        """Sinks that hear every event from here on."""
        for sink in sinks:
            if sink is not None:
                self._sinks.append(sink)
                self._closing.callback(sink.close)

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        for sink in self._sinks:
            sink.log(event, step=step, epoch=epoch, values=values)

    def __enter__(self) -> Reports:
        return self

    def __exit__(self, *details: Any) -> None:
        # The error is passed on so that a sink that cannot close does not hide it.
        self._closing.__exit__(*details)
