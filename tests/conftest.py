"""Settings of every test: no network, one thread for each process by default, no deadlines, short measurements."""

import logging
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Before anything imports torch or transformers, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings
from omegaconf import DictConfig, read_write

from trainer.config import compose
from trainer.config.groups import own_folder
from trainer.export import timing

timing.SECONDS_PER_MODEL = 0.0

# Without stored bytecode, every worker rewrites the assertions of all tests, and every process compiles the program.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

_compose_with_hydra = compose.compose_with_hydra
_composed: dict[tuple[str, ...], bytes] = {}


def _compose_once(folder: Path, name: str, overrides: Sequence[str]) -> DictConfig:
    """Compose each choice of options of `conf/` once in a process, as Hydra takes longer than the rest of a check."""
    if folder != own_folder() or any("hydra" in override for override in overrides):
        return _compose_with_hydra(folder, name, overrides)
    if (key := (name, *overrides)) not in _composed:
        _composed[key] = pickle.dumps(_compose_with_hydra(folder, name, overrides))
    config: DictConfig = pickle.loads(_composed[key])
    with read_write(config.hydra):
        config.hydra.runtime.cwd = os.getcwd()
    return config


compose.compose_with_hydra = _compose_once

settings.register_profile("thorough", deadline=None, derandomize=True, database=None)
settings.register_profile("tests", settings.get_profile("thorough"), max_examples=30)
settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Takes back what Hydra's `--info` adds: handlers that write to a test's own, soon closed, output."""
    loggers = [logging.getLogger(name) for name in (None, "hydra")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        logger.setLevel(level)
        for handler in logger.handlers[:]:
            if type(handler) is logging.StreamHandler and handler not in handlers:
                logger.removeHandler(handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that need a CUDA device on a machine without one."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")  # chosen by `-m gpu` only: other runs leave these tests out


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, int, int], None]:
    """Counts towards a figure of the summary: its name, how many trials there were, how many of them held."""

    def count(name: str, trials: int, held: int) -> None:
        record_property("figure", (name, trials, held))

    return count


_figures: Counter[tuple[str, str]] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Adds up the figures of all tests, wherever they ran."""
    for key, value in report.user_properties if report.when == "call" else ():
        if key == "figure":
            name, trials, held = value  # type: ignore[misc]  what `figure` recorded
            _figures[name, "trials"] += trials
            _figures[name, "held"] += held


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the figures."""
    names = sorted({name for name, _ in _figures})
    if names:
        terminalreporter.section("figures")
    for name in names:
        terminalreporter.write_line(f"{name}: {_figures[name, 'held']} of {_figures[name, 'trials']}")
