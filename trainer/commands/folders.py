"""Run folders: where a new run goes, which one is meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from shlex import quote

from trainer.config.sections import RunSection
from trainer.config.stored import load_stored_config
from trainer.config.trust import trust_argument
from trainer.errors import CheckpointError, format_error
from trainer.layout import CHECKPOINTS, DIVERGED, LOCK, RUNS


def new_run_folder(run: RunSection) -> Path:
    """Makes the folder of a new run: `run.dir`, else `runs/<date>_<time>[_name]`, with a number where that is taken.

    Raises:
        CheckpointError: `run.dir` holds a run already, or cannot be made.
    """
    if run.dir is not None:
        folder = _own("run.dir", Path(run.dir))
        if (folder / CHECKPOINTS).is_dir():
            remedy = f"Go on with {argument('resume', folder)}, or name another folder"
            raise CheckpointError(format_error("run.dir", "holds a run already", remedy, value=run.dir))
        return folder
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S") + (f"_{run.name}" if run.name else "")
    for number in count(1):
        folder = RUNS / (stamp if number == 1 else f"{stamp}_{number}")
        with suppress(FileExistsError):  # taken, perhaps by a process that starts in this very moment
            return _make("run.name", folder, exist_ok=False)
    raise AssertionError("count never ends")


def fixed_run_folder(run: RunSection) -> Path:
    """The folder that `resume=auto` goes on in or starts: `run.dir`, else `runs/<name>`."""
    assert run.dir is not None or run.name is not None, "the config was checked"
    return _own("run.name", Path(run.dir) if run.dir is not None else RUNS / str(run.name))


def existing_run_folder(path: str | None, key: str = "run") -> Path:
    """The run folder of a path: a run folder itself, or one of its checkpoints; None takes the newest run.

    `key` is what named it, for messages.

    Raises:
        CheckpointError: There is no run there.
    """
    if path is None:
        return newest_run()
    folder = Path(path)
    for candidate in (folder, folder.parent, folder.parent.parent):
        # A run that diverged early has no checkpoint.
        if (candidate / CHECKPOINTS).is_dir() or (candidate / DIVERGED).is_dir():
            return candidate
    problem = "holds no run" if folder.exists() else "no such folder"
    raise CheckpointError(format_error(key, problem, "Give a run folder or one of its checkpoints", value=path))


@contextmanager
def unless_started(folder: Path, *, own: bool) -> Iterator[None]:
    """A block that a run starts in: where it fails before that, nothing of it is left.

    Args:
        folder: The run folder, locked.
        own: It was made for this run, so it goes too.
    """
    try:
        yield
    except BaseException:
        if all(path.name == LOCK for path in folder.iterdir()):
            (folder / LOCK).unlink(missing_ok=True)
            if own:
                folder.rmdir()
        raise


def argument(key: str, folder: Path) -> str:
    """What names a run on a command line, `resume=runs/demo`, with the trust that its own parts need."""
    trust = ""
    with suppress(CheckpointError):  # a run that cannot be read is told of by whoever reads it
        trust = trust_argument(load_stored_config(folder))
    return quote(f"{key}={folder}") + trust


def named_checkpoint(path: str | None, checkpoint: str) -> str:
    """Which checkpoint is meant: the one that `path` itself is, else `checkpoint`."""
    name = "" if path is None else Path(path).name
    return name if name.startswith("step-") else checkpoint


def newest_run() -> Path:
    """The run under `runs/` that took the newest checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    if runs := runs_by_age():
        return runs[0]
    problem = f"there is no run under {RUNS.absolute()}"
    raise CheckpointError(format_error("run", problem, "Train one, or name its folder: run=PATH"))


def runs_by_age() -> list[Path]:
    """The runs under `runs/`, the one that took the newest checkpoint first."""
    runs = [folder for folder in RUNS.glob("**/") if (folder / CHECKPOINTS).is_dir()]
    return sorted(runs, key=lambda folder: (folder / CHECKPOINTS).stat().st_mtime, reverse=True)


def _own(key: str, folder: Path) -> Path:
    """Makes a folder; one that is there must be empty or a run's, which has a lock."""
    _make(key, folder, exist_ok=True)
    if any(folder.iterdir()) and not (folder / LOCK).exists():
        problem, remedy = "holds something else than a run", "Name a folder that is new or empty"
        raise CheckpointError(format_error(key, problem, remedy, value=str(folder)))
    return folder


def _make(key: str, folder: Path, *, exist_ok: bool) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        raise CheckpointError(format_error(key, f"cannot be made ({error.strerror})", value=str(folder))) from error
    return folder
