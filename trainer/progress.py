"""Progress of work that takes a while: the parts of the package report it here, and the screen, if any, shows it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

T = TypeVar("T")


@dataclass(eq=False)
class Phase:
    """A piece of work.

    Attributes:
        title: What is being done: "loading PyTorch".
        total: The number of its parts; None is a single one.
        done: The number of parts that are done.
        is_brief: It usually takes less than a few seconds, so a log of lines does not name it.
        start: When it began, by `time.monotonic`.
    """

    title: str
    total: int | None = None
    done: int = 0
    is_brief: bool = False
    start: float = field(default_factory=time.monotonic)


class Watcher(Protocol):
    """A screen that shows phases."""

    def show_phases(self, phases: Sequence[Phase]) -> None:
        """Show the phases that are under way, the outermost first; called at every change."""
        ...


_watcher: Watcher | None = None
_process = 0
_phases: list[Phase] = []


@contextmanager
def shown_on(watcher: Watcher | None) -> Iterator[None]:
    """Show the phases of this process on a screen during the block; processes that it forks show none."""
    global _watcher, _process
    before = _watcher, _process
    _watcher, _process = watcher, os.getpid()
    try:
        yield
    finally:
        _watcher, _process = before


@contextmanager
def phase(title: str, total: int | None = None, *, is_brief: bool = False) -> Iterator[Callable[[int], None]]:
    """Show the name of a phase during the block; yield a function to call with the number of parts that are done."""
    watcher = _watcher if _process == os.getpid() else None
    if watcher is None:
        yield lambda done: None
        return
    entry = Phase(title, total, is_brief=is_brief)

    def advance(done: int) -> None:
        entry.done = done
        watcher.show_phases(_phases)

    _phases.append(entry)
    watcher.show_phases(_phases)
    try:
        yield advance
    finally:
        _phases.remove(entry)
        watcher.show_phases(_phases)


def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    """Yield the items and show how many of `total` are done."""
    with phase(title, total) as advance:
        for done, item in enumerate(items, 1):
            yield item
            advance(done)
