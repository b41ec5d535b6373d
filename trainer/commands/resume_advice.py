"""The advice how to resume a run that has ended early."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.checkpoint.listing import list_newest_first
from trainer.commands.run_folders import run_argument
from trainer.errors import Interrupted, LostWorkerError, TrainerError, find_user_error
from trainer.layout import CHECKPOINTS


def advise_resume(folder: Path) -> list[str]:
    """Say how to resume a run that has ended without saving."""
    # Without reading the tensors: a checkpoint has its name only if every byte was written.
    newest = next((each for each in list_newest_first(folder / CHECKPOINTS) if each.fault is None), None)
    checkpoint = [] if newest is None else [f"The newest checkpoint is {newest.folder}."]
    return [*checkpoint, _resume_instruction(folder)]


def _resume_instruction(folder: Path | None) -> str:
    if folder is None:
        return "Start the run again."
    if any((folder / CHECKPOINTS).glob("step-*")):
        return f"Resume with: trainer train {run_argument('resume', folder)}"
    return "No checkpoint was saved yet. Start the run again."


@contextmanager
def resume_instruction_added(folder: Path | None) -> Iterator[None]:
    """Add to an error that ends the run how to resume it; None if the run has no folder yet.

    Raises:
        Interrupted: As in the block, with the instruction.
        LostWorkerError: A worker was lost, also if another error hides that.
    """
    try:
        yield
    except Interrupted as error:
        if len(error.messages) > 1:
            raise
        # The signal may have arrived inside OmegaConf, which adds lines to the message of every exception.
        reason, *_ = str(error).splitlines()
        raise Interrupted(reason, _resume_instruction(folder)) from error
    except RuntimeError as error:
        # torch's signal handler may raise the error a second time, while the run is cleaned up after the first. And a
        # worker that does not answer is killed, which is reported too.
        lost: list[TrainerError] = []
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(user_error := find_user_error(cause), LostWorkerError):
                lost.append(user_error)
            cause = cause.__context__
        if not lost:
            raise
        # The second time may be outside of the block that knows the folder.
        if advised := next((each for each in lost if len(each.messages) > 1), None):
            raise advised from error
        first = next((each for each in lost if str(each).startswith("loader.timeout")), lost[-1])
        raise LostWorkerError(*first.messages, _resume_instruction(folder)) from error
