"""What exporting must leave alone: the global random states and the user's terminal."""

import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO

import numpy as np
import torch


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Afterwards the global generators of Python, NumPy and torch (CPU) are where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        # Exporting runs on the CPU alone: without the empty list a GPU would be woken up just to read its state.
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextmanager
def silence() -> Iterator[None]:
    """No log record, no warning and nothing printed leaves the block.

    Meant for calls into the exporters alone, which warn of what their users cannot change: deprecations inside
    torch, translations for packages that are not installed, sizes that tracing could have frozen (the proof
    looks for those).
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
