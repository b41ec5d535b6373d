"""Signals that ask a run to stop: the first one ends it in order, a second one at once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from trainer.errors import Interrupted

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """A block that SIGTERM ends as Ctrl-C does: by no `Exception`, which a library could take for a fault of its own.

    So whatever is unfinished is cleared away. The exit code is the one that a shell gives of the signal.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class StopSignals:
    """Catches SIGTERM, SIGINT and SIGUSR1 while its `with` block lasts.

    Inside `deferred()` the first signal is only remembered, so that a step can be finished; outside it raises
    `Interrupted` where it arrives. A second signal has its default effect: the process ends.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferring = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in STOPPING:
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stopping(self) -> bool:
        """Whether a signal has arrived."""
        return self.received is not None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block in which the first signal waits; `stopping` tells of it."""
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def raise_if_stopping(self) -> None:
        """Raises what was remembered.

        Raises:
            Interrupted: A signal has arrived.
        """
        if self.received is not None:
            raise Interrupted(f"stopped by {self.received.name}")

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.received = signal.Signals(number)
        for other in STOPPING:
            signal.signal(other, signal.SIG_DFL)
        if not self._deferring:
            self.raise_if_stopping()
