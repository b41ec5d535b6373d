"""Signals that stop a run: the first one after the current step and its checkpoint, a second one at once.

A limit of time stops a run like the first signal.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import RLock
from types import FrameType
from typing import Any

from trainer.errors import Interrupted

DRAWING = RLock()
"""Held while the live lines of a terminal are drawn."""

_PATIENCE = 0.2  # seconds
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


_received_by_guest: list[int] | None = None


@contextmanager
def process_kept() -> Iterator[list[int]]:
    """Leave the process to its caller: in the block, a second signal has the effect that the caller has chosen.

    Yields a list of the signals that jobs in the block receive.
    """
    global _received_by_guest
    before, _received_by_guest = _received_by_guest, []
    try:
        yield _received_by_guest
    finally:
        _received_by_guest = before


def note_signal(number: int) -> None:
    """Append a signal to the list of `process_kept`."""
    if _received_by_guest is not None:
        _received_by_guest.append(number)


def can_handle_signals() -> bool:
    """Return whether Python lets this thread set the handlers of signals: only the main thread gets signals."""
    return threading.current_thread() is threading.main_thread()


def end_by_signal(number: int) -> None:
    """End this process as a signal does by default; in `process_kept`, let the caller's handler decide."""
    if _received_by_guest is None:
        signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Make SIGTERM end the block as Ctrl-C does, so that cleanup runs.

    It raises SystemExit, which is not an `Exception`, so no library handles it as an error of its own. The exit code is
    the one that a shell reports for the signal.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    if not can_handle_signals():
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def open_missing_streams() -> None:
    """Give a process whose standard streams are closed streams that lead nowhere, also to those that it starts.

    Otherwise the next file that is opened gets the number of a closed stream, and what a library prints is written into
    it.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(descriptor, True)
        if getattr(sys, name) is None:
            mode = "w" if descriptor else "r"
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8", closefd=False))


def drop_output() -> None:
    """Send standard output to nowhere: its reader has gone, and flushing what is buffered must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def drop_unwritable_output() -> None:
    """Send each standard stream that cannot be written, as on a full disk, to nowhere.

    Python would flush it again when the process ends, and change the exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Hold SIGTERM, SIGINT and SIGUSR1 back in the block: for this process, and for those that it starts.

    A process that is started in the block gets its signals when it enters `StopSignals`.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_on_signals() -> None:
    """Let SIGTERM, SIGINT and SIGUSR1 end this process at once, also if it was started in `signals_blocked`."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def end_with_parent_thread(parent: int) -> None:
    """Have the kernel kill this process when the thread that started it ends. Only Linux can do so.

    Args:
        parent: The process that started this one. If it has ended already, this process is killed at once.
    """
    if sys.platform == "linux":
        import ctypes  # here, because every command starts with this module

        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


class StopSignals:
    """Catch SIGTERM, SIGINT and SIGUSR1 during a `with` block.

    Inside `deferred()` the first signal is only recorded, so that a step can be completed; outside it raises
    `Interrupted` at once. A second signal prints what `at_second` returns and has its default effect: the process ends.

    Args:
        ends_on_second: False ignores a second signal, also after the block. One of several processes may get the same
            request twice, the second time when it is about to end: from the process that started it, and from a
            scheduler or a terminal that signals all processes of a job.

        max_seconds: The time of training, from the start of the job; None has no limit.

    Attributes:
        received: The first signal; None if there was none.
        at_second: Returns lines that say what is kept when a second signal ends the process.
    """

    at_second: Callable[[], list[str]] | None = None
    _mask: set[int] | None = None

    def __init__(self, *, ends_on_second: bool = True, max_seconds: float | None = None) -> None:
        self.received: signal.Signals | None = None
        self._ends_on_second = ends_on_second
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._deferring = False
        self._has_raised = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if can_handle_signals():
            for number in STOP_SIGNALS:
                self._before[number] = signal.signal(number, self._on_signal)
            before = signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # see `signals_blocked`
            self._mask = None if _received_by_guest is None else before
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if self._ends_on_second else signal.SIG_IGN)
        if self._mask is not None:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if self._has_raised and isinstance(error, Exception) and not isinstance(error, Interrupted):
            # The handler raised inside code that took the exception for an error of its own.
            assert self.received is not None
            raise Interrupted(f"stopped by {self.received.name}") from error

    def should_stop(self) -> bool:
        """Return whether a signal has arrived."""
        return self.received is not None

    def is_out_of_time(self) -> bool:
        """Return whether the time of training has passed."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Record the first signal in this block instead of raising; `should_stop` reports it. Blocks may be nested."""
        before, self._deferring = self._deferring, True
        try:
            yield
        finally:
            self._deferring = before

    def raise_if_received(self) -> None:
        """Raise the recorded signal.

        Raises:
            Interrupted: A signal has arrived.
        """
        if self.received is not None:
            raise Interrupted(f"stopped by {self.received.name}")

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        note_signal(number)
        if self.received is not None:
            if self._ends_on_second:
                self._end(number)
            return
        self.received = signal.Signals(number)
        if not self._deferring:
            for other in STOP_SIGNALS if self._ends_on_second else ():
                signal.signal(other, signal.SIG_DFL if _received_by_guest is None else self._before[other])
            self._has_raised = True
            self.raise_if_received()
        if self._ends_on_second:
            announce_stop()

    def _end(self, number: int) -> None:
        """Say what is kept and end this process with the signal's default effect."""
        signal.signal(number, self._before[signal.Signals(number)])
        with suppress(Exception):  # the process ends in any case
            print_at_once("Stopped without saving.", *(self.at_second() if self.at_second else ()))
        end_by_signal(number)


def announce_stop() -> None:
    """Print that a run stops after its step, and what a second signal does."""
    print_at_once("Stopping after this step; press again to stop without saving")


_direct_writes: list[str] = []


def direct_writes() -> list[str]:
    """Return the texts that `print_at_once` has printed."""
    return _direct_writes


def print_at_once(*lines: str) -> None:
    """Print lines to standard error past its buffer, which the code that a signal has interrupted may hold."""
    # A thread that draws completes its drawing. It may wait for a lock of what the signal has interrupted, though.
    held = DRAWING.acquire(timeout=_PATIENCE)
    _direct_writes.append("\n".join(lines))
    with suppress(OSError):
        os.write(2, "".join(f"{line}\n" for line in ("", *lines)).encode(errors="backslashreplace"))
    if held:
        DRAWING.release()
