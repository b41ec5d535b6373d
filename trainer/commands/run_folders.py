"""Run folders: create one, find one, and read its config, events and scores. Needs no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from shlex import quote
from tempfile import mkdtemp

from trainer.checkpoint.listing import list_newest_first, rank_by_score
from trainer.checkpoint.snapshot import read_checkpoint_document
from trainer.config.paths import describe_taken
from trainer.config.sections import RunSection
from trainer.config.stored import load_stored_config, similar_run
from trainer.config.trust import trust_argument
from trainer.documents import EVALUATION, read_document
from trainer.errors import CheckpointError, format_error
from trainer.layout import (
    CHECKPOINTS,
    DIVERGED,
    EVALUATIONS,
    EXPORT,
    EXPORT_MANIFEST,
    LOCK,
    METRICS,
    RUNS,
    TASK,
    Document,
)
from trainer.protocols import StateDict
from trainer.report.events import read_events
from trainer.shapes import CHECKSUM
from trainer.validation_sets import VALIDATION, file_stem, validation_splits


def create_run_folder(run: RunSection) -> Path:
    """Create the folder of a new run: `run.dir`, else `runs/<date>_<time>[_name]`, numbered if that name is taken.

    Raises:
        CheckpointError: `run.dir` already contains a run, or cannot be created.
    """
    if run.dir is not None:
        _create("run.dir", Path(run.dir), exist_ok=True)
        check_new_folder(run)
        return Path(run.dir)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S") + (f"_{run.name}" if run.name else "")
    for number in count(1):
        folder = RUNS / (stamp if number == 1 else f"{stamp}_{number}")
        with suppress(FileExistsError):  # taken, perhaps by a process that starts at the same moment
            return _create("run.name", folder, exist_ok=False)
    raise AssertionError("count never ends")


def check_new_folder(run: RunSection) -> None:
    """Raise CheckpointError if a new run cannot use `run.dir`, as far as that shows without creating it."""
    if run.dir is None:
        return
    check_free("run.dir", Path(run.dir))
    if (Path(run.dir) / CHECKPOINTS).is_dir():
        remedy = f"Resume it with {run_argument('resume', Path(run.dir))}, or name another folder"
        raise CheckpointError(format_error("run.dir", "already contains a run", remedy, value=run.dir))
    _check_creation("run.dir", Path(run.dir))


def claim_fixed_folder(run: RunSection) -> Path:
    """Create the folder that `resume=auto` resumes or starts, unless it exists, and return it.

    Raises:
        CheckpointError: It cannot be created, or is no run folder.
    """
    folder = _claim_folder("run.name", fixed_folder(run))
    refuse_links(folder)
    return folder


def fixed_folder(run: RunSection) -> Path:
    """Return the path of the folder that `resume=auto` resumes or starts: `run.dir`, else `runs/<name>`."""
    assert run.dir is not None or run.name is not None, "the config was checked"
    return Path(run.dir) if run.dir is not None else RUNS / str(run.name)


def find_run_folder(path: str | None, key: str = "run") -> Path:
    """Return the run folder that a path names: a run folder or one of its checkpoints; None is the newest run.

    Args:
        path: The path.
        key: The key that contains the path, for messages.

    Raises:
        CheckpointError: There is no run, or it contains a symbolic link.
    """
    folder = find_newest_run() if path is None else Path(path)
    for candidate in (folder, folder.parent, folder.parent.parent):
        # A run that diverged early has no checkpoint.
        if (candidate / CHECKPOINTS).is_dir() or (candidate / DIVERGED).is_dir():
            refuse_links(candidate)
            return candidate
    if (folder / EXPORT_MANIFEST).is_file():
        problem = "is a folder of artifacts without its run"
        remedy = f"Use trainer predict {quote(f'run={folder}')} or trainer serve {quote(f'folder={folder}')}"
    else:
        problem = problem_of_folder(folder, "contains no run")
        remedy = similar_run(folder) or "Name a run folder or one of its checkpoints"
    raise CheckpointError(format_error(key, problem, remedy, value=path))


def problem_of_folder(folder: Path, lack: str) -> str:
    """Return what is wrong with a folder that cannot be used: `lack`, unless there is no folder at this path."""
    if folder.is_dir():
        return lack
    return "is not a folder" if folder.exists() else "no such folder"


def refuse_links(folder: Path) -> None:
    """Refuse the folder of a run or sweep with a symbolic link: verbs write into it, and it may come from anyone.

    Raises:
        CheckpointError: There is a link.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink():
                remedy = "Put a copy of the file or folder in the place of the link"
                raise CheckpointError(format_error(str(path), "is a link, which a run folder may not contain", remedy))


def find_newest_run() -> Path:
    """Return the run under `runs/` that saved the newest checkpoint.

    Raises:
        CheckpointError: There is none.
    """
    if runs := list_runs_newest_first():
        return runs[0]
    problem = f"there is no run under {RUNS.absolute()}"
    remedy = "Train one with trainer train, or name its folder with run=PATH"
    raise CheckpointError(format_error("run", problem, remedy))


def list_runs_newest_first() -> list[Path]:
    """Return the runs under `runs/`, the one that saved the newest checkpoint first."""
    runs = [folder for folder in RUNS.glob("**/") if (folder / CHECKPOINTS).is_dir()]
    return sorted(runs, key=lambda folder: (folder / CHECKPOINTS).stat().st_mtime, reverse=True)


def read_task_state(checkpoint: Path | None) -> StateDict | None:
    """Return the state of the fitted task in a checkpoint; None without a checkpoint or if it contains none."""
    text = None if checkpoint is None else read_checkpoint_document(checkpoint, TASK)
    return None if text is None else json.loads(text)


def read_best_score(folder: Path) -> Document | None:
    """Return the step and the score of the best checkpoint of a run; None if no checkpoint has a score."""
    ranked = rank_by_score(list_newest_first(folder / CHECKPOINTS))
    return {"step": ranked[0].step, **(ranked[0].score or {})} if ranked else None


def describe_score(score: Document | None) -> str:
    """Return the monitored metric of a run, with its direction."""
    if score is None:
        return "no score"
    return f"{score['name']} {score['value']:g} ({'higher' if score['higher_is_better'] else 'lower'} is better)"


def select_checkpoint(path: str | None, checkpoint: str) -> str:
    """Return the name of the checkpoint to use: the one that `path` names, else `checkpoint`."""
    name = "" if path is None else Path(path).name
    return name if name.startswith("step-") else checkpoint


def run_argument(key: str, folder: Path) -> str:
    """Return the argument that names a run, `resume=runs/demo`, with the trust that the run's own parts need."""
    trust = ""
    with suppress(CheckpointError):  # whoever reads the run reports that it cannot be read
        trust = trust_argument(load_stored_config(folder))
    return quote(f"{key}={folder}") + trust


def find_artifacts(folder: Path) -> Path:
    """Return the folder with the artifacts of a run.

    Raises:
        CheckpointError: There are none.
    """
    if not (folder / EXPORT / EXPORT_MANIFEST).is_file():
        remedy = f"Write one: trainer export {run_argument('run', folder)} export.formats=[onnx]"
        raise CheckpointError(format_error("run", "has no artifacts", remedy, value=str(folder)))
    return folder / EXPORT


@contextmanager
def discard_unless_started(folder: Path, *, created: bool) -> Iterator[None]:
    """Remove what a run left if the block fails before the run has started.

    Args:
        folder: The run folder, locked.
        created: The folder was created for this run, so it is removed too.
    """
    try:
        yield
    except BaseException:
        if all(path.name == LOCK for path in folder.iterdir()):
            (folder / LOCK).unlink(missing_ok=True)
            if created:
                folder.rmdir()
        raise


def _claim_folder(key: str, folder: Path) -> Path:
    """Create a folder; an existing one must be empty or belong to a run, which has a lock."""
    _create(key, folder, exist_ok=True)
    check_free(key, folder)
    return folder


def check_free(key: str, folder: Path) -> None:
    """Raise CheckpointError if a run cannot use a folder, as far as that shows without creating it."""
    if message := describe_taken(key, folder):
        raise CheckpointError(message)


def _check_creation(key: str, folder: Path) -> None:
    """Raise CheckpointError if no folder can be created next to one that is to be created: permissions do not tell."""
    if folder.exists():
        return
    existing = next(path for path in folder.absolute().parents if path.exists())
    try:
        os.rmdir(mkdtemp(prefix=".trainer-", dir=existing))
    except OSError as error:
        raise _creation_error(key, folder, error) from error


def _creation_error(key: str, folder: Path, error: OSError) -> CheckpointError:
    problem = f"cannot be created ({error.strerror})"
    return CheckpointError(format_error(key, problem, "Name another folder", value=str(folder)))


def _create(key: str, folder: Path, *, exist_ok: bool) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        if isinstance(error, FileExistsError):
            raise CheckpointError(format_error(key, "is not a folder", "Name a folder", value=str(folder))) from error
        raise _creation_error(key, folder, error) from error
    return folder


@dataclass(frozen=True)
class RunRecord:
    """The config, events and scores that a run recorded.

    Attributes:
        folder: The run folder.
        config: Its resolved config, as data; nothing in it is executed.
        events: The events of `metrics.jsonl`, as if the run had never stopped.
        evaluations: The contents of `eval/<split>.json`, by split.
        best: Score and step of the best checkpoint; None without one.
    """

    folder: Path
    config: Document
    events: list[Document]
    evaluations: dict[str, Document]
    best: Document | None

    @property
    def validation_sets(self) -> list[str]:
        """The validation splits that were evaluated, the one that picks the best checkpoint first."""
        splits = validation_splits(dict.fromkeys(event["split"] for event in self.events if event["event"] == "eval"))
        first = (self.best or {}).get("split", VALIDATION)
        return sorted(splits or [first], key=lambda split: split != first)

    @property
    def monitored_evaluation(self) -> str:
        """The name of the evaluation on the validation split that picks the best checkpoint, as in `evaluations`."""
        return file_stem(self.validation_sets[0])

    def series(self, event: str, name: str, **filters: object) -> dict[int, float]:
        """Return step -> value `name` of the events `event` whose values equal `filters`."""
        selected = (item for item in self.events if item["event"] == event and isinstance(item.get(name), int | float))
        return {
            item["step"]: item[name]
            for item in selected
            if all(item.get(key) == value for key, value in filters.items())
        }


def read_run(path: str | None, key: str = "run") -> RunRecord:
    """Return the config, events and scores that a run recorded.

    Args:
        path: As in `find_run_folder`.
        key: The key that contains the path, for messages.

    Raises:
        CheckpointError: There is no run, or a file of it cannot be read.
    """
    folder = find_run_folder(path, key)
    if not (folder / METRICS).is_file():
        raise CheckpointError(format_error(key, f"contains no {METRICS}", "Name a run folder", value=str(folder)))
    files = sorted((folder / EVALUATIONS).glob("*.json"))
    evaluations = {file.stem: _read_evaluation(file) for file in files}
    best = read_best_score(folder)
    return RunRecord(folder, load_stored_config(folder, key), read_events(folder / METRICS), evaluations, best)


def read_runs(paths: Iterable[tuple[str, str | None]]) -> list[RunRecord]:
    """Return what several runs recorded, as `read_run` does, by key and path.

    Raises:
        CheckpointError: Some cannot be read; has the messages of all.
    """
    records, problems = [], list[str]()
    for key, path in paths:
        try:
            records.append(read_run(path, key))
        except CheckpointError as error:
            problems += error.messages
    if problems:
        raise CheckpointError(*problems)
    return records


def _read_evaluation(file: Path) -> Document:
    """Return an evaluation without its checksum; a metric that is not defined is null in the file and NaN here."""
    document: Document = read_document(file, EVALUATION, "Evaluate again: trainer eval")
    document.pop(CHECKSUM, None)
    return {key: math.nan if value is None else value for key, value in document.items()}
