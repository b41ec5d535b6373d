"""Settings of every test: no network, one thread for each process by default, no deadlines, short measurements."""

import gc
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

# Before anything imports torch or transformers, and inherited by the processes that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

import tests.support.unsynced  # noqa: F401  waits for no disk
from tests.support import composed
from trainer.export import timing

timing.SECONDS_PER_MODEL = 0.0

# The objects of the collected tests live as long as the process: the collector need not look at them, then or later.
gc.disable()

# Without stored bytecode, every worker rewrites the assertions of all tests, and every process compiles the program.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

settings.register_profile(
    "thorough", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True, database=None
)
settings.register_profile("tests", settings.get_profile("thorough"), max_examples=30)
settings.load_profile("tests")


@pytest.fixture(scope="session", autouse=True)
def _compositions_shared(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Lets the processes of a run share what they compose, in the folder that holds their own folders."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        composed.share(tmp_path_factory.getbasetemp().parent / "composed")


def pytest_collection_finish() -> None:
    """Turn the garbage collector on again for what the tests make."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Takes back what Hydra's `--info` adds: handlers that write to a test's own, soon closed, output."""
    loggers = [logging.getLogger(name) for name in (None, "hydra")]
    before = [(logger, logger.level, list(logger.handlers)) for logger in loggers]
    yield
    for logger, level, handlers in before:
        if logger.level != level:  # setting it clears the cache of every logger, of which libraries have hundreds
            logger.setLevel(level)
        for handler in logger.handlers[:]:
            if type(handler) is logging.StreamHandler and handler not in handlers:
                logger.removeHandler(handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests that need a CUDA device on a machine without one, and keeps what libraries compute repeatedly."""
    _keep_tables_of_export()
    _name_datasets_at_random()
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")  # chosen by `-m gpu` only: other runs leave these tests out


def _keep_tables_of_export() -> None:
    """Keep the table of ONNX operators, and register PyTorch's operators once.

    PyTorch does both anew for every exported graph, which takes a third of the export of a small model.
    """
    exporter = sys.modules.get("torch.onnx._internal.exporter._registration")
    if exporter is not None and not hasattr(exporter.ONNXRegistry.from_torchlib, "cache_info"):
        exporter.ONNXRegistry.from_torchlib = staticmethod(cache(exporter.ONNXRegistry.from_torchlib))
    operators = sys.modules.get("torch._export.utils")
    if operators is not None and not hasattr(operators._materialize_cpp_cia_ops, "cache_info"):
        operators._materialize_cpp_cia_ops = cache(operators._materialize_cpp_cia_ops)


def _name_datasets_at_random() -> None:
    """Let `datasets` not pickle each new table to name it by a hash, which names only the files of its own cache."""
    rows = sys.modules.get("datasets.arrow_dataset")
    if rows is not None:
        rows.generate_fingerprint = lambda dataset: rows.generate_random_fingerprint()  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """The Chromium of this machine, or the one of `playwright install chromium`, for tests marked `interop`."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


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
