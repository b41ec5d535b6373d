"""A process killed at any moment of continuous saving leaves its newest checkpoint intact."""

import os
import random
import signal
import time

import pytest

from trainer.checkpoint.manifest import find_faults
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.store import Store


def save_until_killed(folder, make, first, reports):
    """Save step after step in a child process, every other one twice; report each durable step to a pipe."""
    try:
        store = Store(folder, keep=2)
        for step in range(first, first + 10_000):
            for _ in range(1 + step % 2):
                store.save(make(step, score=1 / step))
            os.write(reports, step.to_bytes(4, "little"))
    finally:
        os._exit(1)


def submit_until_killed(folder, make, first, reports):
    """The same on the background thread: a step is durable when the next one was accepted."""
    try:
        saver = Saver(Store(folder, keep=2))
        for step in range(first, first + 10_000):
            saver.submit(make(step))
            if step > first:
                os.write(reports, (step - 1).to_bytes(4, "little"))
    finally:
        os._exit(1)


# Since Python 3.12 a fork next to other threads warns; these children use no thread or lock of their parent.
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("saving", [save_until_killed, submit_until_killed])
@pytest.mark.parametrize("count", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_kill_while_saving_leaves_the_newest_checkpoint_intact(folder, make, same, saving, count, figure):
    generator = random.Random(count)
    newest = 0
    for _ in range(count):
        reading, reports = os.pipe()
        child = os.fork()
        if child == 0:
            saving(folder, make, newest + 1, reports)
        os.close(reports)
        first = os.read(reading, 4)
        time.sleep(generator.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        with os.fdopen(reading, "rb") as pipe:
            durable = int.from_bytes((first + pipe.read())[-4:], "little")

        store = Store(folder, keep=2)
        loaded = store.load("last")
        newest = loaded.step
        assert newest in (durable, durable + 1)
        score = 1 / newest if saving is save_until_killed else None
        assert same(loaded, make(newest, score))
        assert all(find_faults(store.path(step)) == [] for step in store.list())
        assert len(store.list()) >= min(2, newest)
    figure("SIGKILLs while saving, newest checkpoint intact", count, count)
