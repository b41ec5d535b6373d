"""A disk that is full, or takes no more: told as what it is, not as a fault of a model or of an artifact."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.errors import CheckpointError, TrainerError, format_error

if TYPE_CHECKING:
    from torch import nn

_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
_UNABLE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_REMEDY = "Remove the cause, then export again: the artifacts of an earlier export are as they were"
_MARGIN = 2**20
"""Bytes beside the weights: names, code, shapes."""


def storage_fault(error: BaseException | None) -> OSError | None:
    """What storage refused, where an exception is that or came of it."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _REFUSALS:
            return error
        # safetensors is no Python, and wraps no OSError.
        if (found := re.search(r"\(os error (\d+)\)", str(error))) and int(found[1]) in _REFUSALS:
            return OSError(int(found[1]), os.strerror(int(found[1])))
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def storage_told(folder: Path, stage: Path) -> Iterator[None]:
    """What storage refuses in a block becomes an error of the user's.

    Args:
        folder: The export folder.
        stage: The folder in it whose files are to become its own.

    Raises:
        CheckpointError: A file cannot be written.
    """
    try:
        yield
    except TrainerError:
        raise
    except Exception as error:
        fault = storage_fault(error)
        if fault is None:
            raise
        file = Path(fault.filename) if isinstance(fault.filename, str) else stage
        path = folder / file.relative_to(stage) if file.is_relative_to(stage) else file
        raise CheckpointError(format_error(str(path), f"cannot be written: {fault.strerror}", _REMEDY)) from error


def reserve(path: Path, model: nn.Module) -> None:
    """Has the file system promise room for a file of a model's weights; `path` is then an empty file.

    Writers of torch that find none abort the process, and say nothing that a person understands.

    Raises:
        OSError: There is not so much room.
    """
    size = sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    with path.open("wb") as file:
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size + _MARGIN)
        except OSError as error:
            if error.errno not in _UNABLE:
                raise OSError(error.errno, error.strerror, str(path)) from error
        file.truncate(0)
