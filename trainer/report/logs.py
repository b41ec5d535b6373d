"""Python's logging during a run: `trainer.log` in the run folder, and the screen."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

NOISY = (
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
"""Libraries that report their own progress as information; of them only warnings and errors are kept."""


@contextmanager
def run_logs(path: Path, console: Console, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Sends log records to a file and the screen while the block lasts; Python's warnings are records too.

    Those for the file wait until what the block is given is called: a run that never starts leaves no file.

    Handlers that are already there stay. All levels are as before when the block ends.

    Args:
        path: The file, appended to; its folder exists by then.
        console: The screen, the same as the progress display's, so that a record is printed above it.
        quiet: The screen gets warnings and errors only; the file gets information too.
    """
    root = logging.getLogger()
    waiting = MemoryHandler(sys.maxsize, flushLevel=sys.maxsize, flushOnClose=False)
    handlers = [waiting, _screen(console, logging.WARNING if quiet else logging.INFO)]
    levels = {logger: logger.level for logger in (root, *map(logging.getLogger, NOISY))}
    for logger, level in levels.items():
        logger.setLevel(logging.INFO if logger is root else max(level, logging.WARNING))
    for handler in handlers:
        root.addHandler(handler)
    logging.captureWarnings(True)
    try:
        yield lambda: _write(waiting, path)
    finally:
        logging.captureWarnings(False)
        if waiting.target is not None:
            waiting.target.close()
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        for logger, level in levels.items():
            logger.setLevel(level)


def _write(waiting: MemoryHandler, path: Path) -> None:
    """Writes what waited into the file, and from here on each record at once."""
    waiting.setTarget(_file(path))
    waiting.flush()
    waiting.capacity = 0


def _file(path: Path) -> logging.Handler:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    return handler


def _screen(console: Console, level: int) -> logging.Handler:
    handler: logging.Handler
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, log_time_format="[%H:%M:%S]")
    else:
        # Rich folds lines at 80 columns where there is no terminal; a log file wants them whole.
        handler = logging.StreamHandler(console.file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
    handler.setLevel(level)
    return handler
