"""Signals that stop a run: the first one after the current step, a second one at once."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from trainer.errors import Interrupted

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM end the block as Ctrl-C does, so that cleanup runs.

    It raises SystemExit, which is no `Exception`: a library could take that for an error of its own. The exit code is
    the one that a shell reports for the signal.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def drop_output() -> None:
    """Send standard output to nowhere: its reader has gone, and flushing what is buffered must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class StopSignals:
    """Catch SIGTERM, SIGINT and SIGUSR1 during a `with` block.

    Inside `deferred()` the first signal is only recorded, so that a step can be completed; outside it raises
    `Interrupted` at once. A second signal has its default effect: the process ends.

    Attributes:
        received: The first signal; None if there was none.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferring = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def should_stop(self) -> bool:
        """Return whether a signal has arrived."""
        return self.received is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Record the first signal in this block instead of raising; `should_stop` reports it."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def raise_if_received(self) -> None:
        """Raise the recorded signal.

        Raises:
            Interrupted: A signal has arrived.
        """
        if self.received is not None:
            raise Interrupted(f"stopped by {self.received.name}")

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other in STOP_SIGNALS:
            signal.signal(other, signal.SIG_DFL)
        if not self._deferring:
            self.raise_if_received()
