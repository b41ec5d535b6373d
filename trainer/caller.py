"""Restore the global state of the process that calls the library, because other code runs in it too."""

from __future__ import annotations

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from hydra.core.hydra_config import HydraConfig

from trainer.errors import Interrupted, ReportedError, find_user_error
from trainer.files.untrusted import LIMITS
from trainer.signals import process_kept

_ONE_JOB = RLock()
"""Random generators, settings of torch and signals belong to the process: a job in another thread waits."""

_REPORTED = "a process of the run has failed. Its message is in the output of this process."


@contextmanager
def caller_undisturbed(verb: str) -> Iterator[None]:
    """Run a job of a verb in the block; restore what belongs to the process, and raise errors as a library does.

    Ctrl-C raises KeyboardInterrupt when the job has stopped. Errors that the user can fix are a `TrainerError`.
    """
    with _ONE_JOB, process_kept() as received, _process_state_kept():
        try:
            yield
        except Interrupted as error:
            if signal.SIGINT in received[:1]:
                raise KeyboardInterrupt(str(error)) from error
            raise
        except ReportedError as error:
            error.messages = (_REPORTED,)
            error.args = error.messages
            raise
        except Exception as error:
            user_error = find_user_error(error, verb)
            if user_error is None or user_error is error:
                raise
            raise user_error from error


@contextmanager
def _process_state_kept() -> Iterator[None]:
    environment, path, folder = dict(os.environ), list(sys.path), os.getcwd()
    limits, filters = dict(vars(LIMITS)), list(warnings.filters)
    hydra = HydraConfig.instance()
    hydra_config = hydra.cfg
    captures = warnings.showwarning is getattr(logging, "_showwarning", None)
    try:
        yield
    finally:
        hydra.cfg = hydra_config
        os.chdir(folder)
        sys.path[:] = path
        vars(LIMITS).update(limits)
        warnings.filters[:] = filters  # type: ignore[index]  # declared as a Sequence; it is a list
        logging.captureWarnings(captures)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)


@contextmanager
def torch_undisturbed() -> Iterator[None]:
    """Restore the random generators and the settings of torch that a job changes. Loads torch."""
    import torch

    from trainer.observers import training_state_kept

    deterministic = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cudnn.benchmark, cudnn.allow_tf32, cuda.allow_tf32
    with training_state_kept():
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic, warn_only=warns)
            cudnn.benchmark, cudnn.allow_tf32, cuda.allow_tf32 = before
