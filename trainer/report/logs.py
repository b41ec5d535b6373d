"""Python's logging during a run: to `trainer.log` in the run folder and to the screen."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import TextIO, cast

from rich.console import Console
from rich.logging import RichHandler

from trainer.display import displayable
from trainer.errors import write_error
from trainer.files.storage_errors import naming_errors
from trainer.report.console import can_draw
from trainer.signals import drop_output

NOISY_LIBRARIES = (
    "absl",
    "datasets",
    "filelock",
    "fsspec",
    "httpcore",
    "httpx",
    "huggingface_hub",
    "matplotlib",
    "onnx_ir",
    "onnxscript",
    "PIL",
    "tensorboard",
    "torch",
    "torch.onnx",
    "transformers",
    "urllib3",
)
"""Libraries that log their own progress as information; only their warnings and errors are kept."""

_ONLY_IN_FILE = (
    "trainer.commands.run_log",
    "trainer.data",
    "trainer.export",
    "trainer.task",
    "trainer.model.attention",
)
"""Loggers whose information describes the start of a run at length; the screen shows a few lines instead."""


@contextmanager
def log_to_file_and_screen(path: Path, console: Console, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Send log records and Python's warnings to a file and the screen during the block.

    Yields a function that opens the file. Records wait in memory until then, so a run that never starts leaves no file.
    Existing handlers stay. At the end of the block, all levels are restored.

    Args:
        path: The file, which is appended to; its folder exists when the file is opened.
        console: The screen, shared with the progress display, so that records are printed above it.
        quiet: Print only warnings and errors on the screen; the file always gets information too.
    """
    root = logging.getLogger()
    waiting = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    handlers = [waiting, _screen_handler(console, logging.WARNING if quiet else logging.INFO)]
    levels = {logger: logger.level for logger in (root, *map(logging.getLogger, NOISY_LIBRARIES))}
    for logger, level in levels.items():
        logger.setLevel(logging.INFO if logger is root else max(level, logging.WARNING))
    for handler in handlers:
        root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield lambda: _open_file(waiting, path)
    finally:
        logging.captureWarnings(False)
        if waiting.target is not None:
            waiting.target.close()
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        for logger, level in levels.items():
            logger.setLevel(level)


@contextmanager
def logs_silenced() -> Iterator[None]:
    """Print no log record and no warning in the block, as Python otherwise does before logs are set up."""
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.getLogger().removeHandler(handler)


@contextmanager
def log_warnings_to_file(path: Path) -> Iterator[None]:
    """Send warnings and errors to a file during the block; the first of them creates the file and its folder."""
    root = logging.getLogger()
    handler = _file_handler(path, delay=True)
    handler.setLevel(logging.WARNING)
    root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        handler.close()


def _open_file(waiting: MemoryHandler, path: Path) -> None:
    """Write the waiting records to the file, and from now on every record at once."""
    waiting.setTarget(_file_handler(path))
    waiting.flush()
    waiting.capacity = 0


class _Formatter(logging.Formatter):
    """A formatter that shows texts as they are, without secrets; a message that goes on in a new line is indented."""

    def format(self, record: logging.LogRecord) -> str:
        return displayable(super().format(record)).replace("\n", "\n    ")


class _FileHandler(logging.FileHandler):
    """A handler that creates the folder of its file. A disk that fails costs lines and one warning, but not the run."""

    _has_failed = False

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            super().emit(record)
        except OSError:
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is given by logging
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_failed:
            self._has_failed = True
            logging.getLogger(__name__).warning("%s Lines of this log are lost.", write_error(self.baseFilename, error))

    def close(self) -> None:
        with suppress(OSError):  # the lines that could not be written, again
            super().close()


def _file_handler(path: Path, *, delay: bool = False) -> logging.Handler:
    with naming_errors(path):
        handler = _FileHandler(path, encoding="utf-8", delay=delay)
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    return handler


class _StreamHandler(logging.StreamHandler[TextIO]):
    """A handler that writes nothing if the reader of the output has gone; other errors are reported as usual."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  the name is given by logging
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            drop_output()
        else:
            super().handleError(record)


def _screen_handler(console: Console, level: int) -> logging.Handler:
    handler: logging.Handler
    if can_draw(console):
        handler = RichHandler(console=console, show_path=False, log_time_format="[%H:%M:%S]")
        handler.setFormatter(_Formatter("%(message)s"))
    else:
        # Rich wraps lines at 80 columns if there is no terminal, but redirected output must keep them whole.
        handler = _StreamHandler(cast(TextIO, console.file))
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    handler.setLevel(level)
    handler.addFilter(lambda record: record.levelno > logging.INFO or not record.name.startswith(_ONLY_IN_FILE))
    return handler
