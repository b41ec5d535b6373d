"""Observers of a run: objects of the user that receive its events and can neither change nor stop it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial

import torch

from trainer.checkpoint.rng_state import capture_rng_state, restore_rng_state
from trainer.progress import phase
from trainer.protocols import Event, Observer, RunView

logger = logging.getLogger(__name__)


class Observers:
    """A sink that passes each event to observers, on the thread that made the sink.

    Training must go on as if there were no observers. So each gets copies, random numbers that it draws are given back,
    and one that fails is reported and gets no more events. The event of a checkpoint comes from another thread, whose
    observers would draw numbers while training does: it waits for the next event of this thread.

    Args:
        observers: The observers by name, for messages.
        run: The run that they observe.
    """

    def __init__(self, observers: Mapping[str, Observer], run: RunView) -> None:
        self._open = dict(observers)
        self._working = {name: (observer, deepcopy(run)) for name, observer in observers.items()}
        self._thread = threading.get_ident()
        self._waiting: deque[Event] = deque()

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        self._waiting.append(Event(event, step, epoch, deepcopy(dict(values))))
        if threading.get_ident() == self._thread:
            self._deliver()

    def close(self) -> None:
        """Deliver what waits, and close the observers; a second call does nothing."""
        self._deliver()
        while self._open:
            name, observer = self._open.popitem()
            with phase(f"{name}: waiting for its end"):
                self._call(name, "its end", observer.close)

    def _deliver(self) -> None:
        while self._waiting:
            event = self._waiting.popleft()
            for name, (observer, run) in list(self._working.items()):
                own = Event(event.name, event.step, event.epoch, deepcopy(event.values))
                where = f"the event {event.name} of step {event.step}"
                self._call(name, where, partial(observer.observe, own, run))

    def _call(self, name: str, where: str, function: Callable[[], None]) -> None:
        try:
            with training_state_kept():
                function()
        except (Exception, SystemExit) as error:
            if self._working.pop(name, None) is not None:
                reason = " ".join(str(error).split())
                problem = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
                logger.warning("%s: failed at %s and gets no more events (%s)", name, where, problem)
                logger.debug("%s", name, exc_info=True)


@contextmanager
def training_state_kept() -> Iterator[None]:
    """Restore the global random generators and settings of torch that code in the block may change."""
    rng_state = capture_rng_state()
    grad, dtype, threads = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads()
    try:
        yield
    finally:
        restore_rng_state(rng_state)
        torch.set_grad_enabled(grad)
        torch.set_default_dtype(dtype)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
