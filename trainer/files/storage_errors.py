"""Recognize the errors of a full or failing disk, and turn them into messages for the user."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import STORAGE_ERRORS, CheckpointError, ErrorType, TrainerError, write_error


@contextmanager
def storage_errors_named(target: Path, stage: Path, error_type: ErrorType) -> Iterator[None]:
    """Turn the error of a disk on which a library writes into `stage` into one that names the file in `target`."""
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        failure = find_storage_error(error, target, stage)
        if failure is None:
            raise
        file = Path(failure.filename) if isinstance(failure.filename, str) else stage
        path = target / file.relative_to(stage) if file.is_relative_to(stage) else file
        raise write_error(path, failure, error_type) from error


def find_storage_error(error: BaseException | None, *folders: Path) -> OSError | None:
    """Return the error of a full or failing disk that an exception is or was caused by, or None.

    In `folders`, every error of a file operation counts.
    """
    while error is not None:
        if isinstance(error, OSError):
            file = Path(str(error.filename))
            is_missing = error.errno == errno.ENOENT and file.parent.exists()  # a file to read, and no vanished folder
            is_inside = any(file.is_relative_to(folder) for folder in folders)
            if error.errno in STORAGE_ERRORS or (is_inside and not is_missing):
                return error
        # safetensors is written in Rust and raises no OSError.
        if (match := re.search(r"\(os error (\d+)\)", str(error))) and int(match[1]) in STORAGE_ERRORS:
            return OSError(int(match[1]), os.strerror(int(match[1])))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def naming_errors(path: Path, error_type: ErrorType = CheckpointError) -> Iterator[None]:
    """Turn an OSError of the block into an error about a file that cannot be written."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error, error_type) from error
