"""`trainer verify`: check the checkpoints and artifacts of a run, and train a part of it again, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trainer.checkpoint.listing import find_step_folders, list_newest_first
from trainer.checkpoint.manifest import find_faults
from trainer.checkpoint.snapshot import read_checkpoint_document
from trainer.commands.replay import Comparison, compare_divergence, compare_training, stored_job
from trainer.commands.run_folders import find_run_folder, read_task_state
from trainer.config.jobs import TrainJob, VerifyJob
from trainer.display import counted
from trainer.distributed.environment import is_first_rank, is_rank, is_watched
from trainer.distributed.launch import RankError, launch
from trainer.documents import UNSEALED
from trainer.errors import CheckpointError, format_error
from trainer.layout import (
    CHECKPOINTS,
    CONFIG,
    DIVERGED,
    DIVERGENCE_REPORT,
    Document,
    export_folders,
    step_name,
)
from trainer.progress import phase
from trainer.report.console import open_console, print_sentence, print_table
from trainer.report.logs import logs_silenced
from trainer.report.screen import phases_shown
from trainer.signals import end_on_signals

if TYPE_CHECKING:
    from trainer.distributed.ranks import Ranks


@dataclass(frozen=True)
class IntactCheckpoints:
    """The intact checkpoints of a run.

    Attributes:
        folders: Step -> folder, ascending.
        newest_first: Their steps, the one saved last first.
    """

    folders: dict[int, Path]
    newest_first: tuple[int, ...]

    def newest_before(self, step: int) -> int | None:
        """Return the step of the checkpoint saved last among checkpoints of lower steps."""
        return next((each for each in self.newest_first if each < step), None)


@dataclass(frozen=True)
class Part:
    """A part of a run to train again.

    Attributes:
        path: The folder to name in messages.
        title: The title of the table of its comparisons.
        job: The run's config.
        start: The checkpoint to start from; None is the start of the run.
        compare: Trains the part again, together with other processes, and compares.
    """

    path: Path
    title: str
    job: TrainJob
    start: Path | None
    compare: Callable[[Ranks | None], list[Comparison]]

    @property
    def devices(self) -> int:
        """The number of devices that the part was trained on."""
        return self.job.devices if isinstance(self.job.devices, int) else 1


def run(job: VerifyJob, config: Document) -> None:
    """Verify a run and print a table for each type of check. Writes nothing.

    A part that was trained on several devices is trained again in as many processes.

    Raises:
        CheckpointError: Something differs; one message for each difference.
    """
    folder = find_run_folder(job.run)
    if is_rank():
        end_on_signals()
    # The process that has started this one has checked the files.
    console = open_console("auto") if not is_watched() and is_first_rank() else None
    intact, faults = _verify_checkpoints(folder / CHECKPOINTS, console)
    if console is None:
        faults = []
    else:
        for artifacts in export_folders(folder):
            faults += _verify_artifacts(artifacts, console)
    parts = [*_training_parts(job, folder, intact, console), *_divergence_parts(job, folder, intact)]
    if is_rank():
        faults += _replay_with_others(parts)
    else:
        assert console is not None
        for part in parts:
            if part.devices == 1:
                with phases_shown(console), phase(part.title):
                    comparisons = part.compare(None)
                faults += _print_comparisons(console, part, comparisons)
        for devices in sorted({part.devices for part in parts} - {1}):
            faults += _launch(job, config, devices, parts)
    if faults:
        raise CheckpointError(*faults)


def _launch(job: VerifyJob, config: Document, devices: int, parts: Sequence[Part]) -> list[str]:
    """Replay the parts that were trained on a number of devices in as many processes; return what differs."""
    grace = max(part.job.launch.grace for part in parts if part.devices == devices)
    try:
        launch("verify", config, job.stored_overrides, devices, grace)
    except RankError as error:
        if error.exit_code != CheckpointError.exit_code:
            raise
        return list(error.messages)
    return []


def _replay_with_others(parts: Sequence[Part]) -> list[str]:
    """Replay the parts that were trained on as many devices as there are processes; the first process prints."""
    from trainer.builders.training import join_devices

    size = int(os.environ["WORLD_SIZE"])
    console = open_console("auto")
    faults: list[str] = []
    for part in parts:
        if part.devices != size and is_first_rank() and not is_watched():
            trained = f"trained on {counted(part.devices, 'device')}, not on {size}"
            print_sentence(console, f"no {part.title}: it was {trained}.")
    own_parts = [part for part in parts if part.devices == size]
    if not own_parts:
        return faults
    with ExitStack() as stack:
        if not is_first_rank():
            stack.enter_context(logs_silenced())
        ranks = join_devices(own_parts[0].job, read_task_state(own_parts[0].start))
        stack.callback(ranks.close)
        for part in own_parts:
            comparisons = part.compare(ranks)
            if ranks.is_first:
                faults += _print_comparisons(console, part, comparisons)
    return faults


def _verify_checkpoints(root: Path, console: Console | None) -> tuple[IntactCheckpoints, list[str]]:
    folders = find_step_folders(root)
    faults = {step: _find_checkpoint_faults(folder) for step, folder in folders.items()}
    rows = [[step_name(step), "; ".join(each) or "intact"] for step, each in faults.items()]
    if rows and console is not None:
        print_table(console, str(root), ["checkpoint", "state"], rows)
    messages = [f"{root / step_name(step)}: {fault}." for step, each in faults.items() for fault in each]
    intact = {step: folder for step, folder in folders.items() if not faults[step]}
    newest = tuple(checkpoint.step for checkpoint in list_newest_first(root) if checkpoint.step in intact)
    return IntactCheckpoints(intact, newest), messages


def _find_checkpoint_faults(folder: Path) -> list[str]:
    try:
        return find_faults(folder)
    except CheckpointError as error:
        return [message.removesuffix(".") for message in error.messages]


def _verify_artifacts(folder: Path, console: Console) -> list[str]:
    from trainer.export.folder import is_verifiable
    from trainer.export.folder import verify as verify_export

    faults = verify_export(folder)
    if faults:
        rows = [[name, fault or "intact"] for name, fault in faults.items()]
        print_table(console, str(folder), ["file", "state"], rows)
    if not is_verifiable(folder):
        print_sentence(console, f"note: {folder}: {UNSEALED}.")
    return [f"{folder / name}: {fault}." for name, fault in faults.items() if fault]


def _training_parts(job: VerifyJob, folder: Path, intact: IntactCheckpoints, console: Console | None) -> Iterator[Part]:
    steps = _select_replay(job.start, intact)
    if steps is None:
        remedy = "Set start=step-0 to replay from the start" if intact.folders else "The run has none"
        if console is not None:
            print_sentence(console, f"no replay: two intact checkpoints are needed. {remedy}.")
        return
    first, last = steps
    start, stop = intact.folders.get(first), intact.folders[last]
    origin = "the start" if start is None else step_name(first)
    stored = stored_job(job, read_checkpoint_document(stop, CONFIG) or "", stop)
    compare = partial(compare_training, job, folder, start, stop)
    yield Part(folder, f"replay of {origin} to {step_name(last)}", stored, start, compare)


def _select_replay(start: str | None, intact: IntactCheckpoints) -> tuple[int, int] | None:
    """Return the first and the last step of the replay; step 0 needs no checkpoint."""
    if start is None:
        stop = next(iter(intact.newest_first), None)
        before = None if stop is None else intact.newest_before(stop)
        return None if stop is None or before is None else (before, stop)
    first = int(start.removeprefix("step-"))
    remedy = f"Intact checkpoints: {', '.join(f'step-{step}' for step in intact.folders) or 'none'}"
    if first and first not in intact.folders:
        raise CheckpointError(format_error("start", "this step has no intact checkpoint", remedy, value=start))
    after = [step for step in intact.folders if step > first]
    if not after:
        problem = "there is no intact checkpoint after this step"
        raise CheckpointError(format_error("start", problem, remedy, value=start))
    return first, after[0]


def _divergence_parts(job: VerifyJob, folder: Path, intact: IntactCheckpoints) -> Iterator[Part]:
    bundles = [path.parent for path in sorted((folder / DIVERGED).glob(f"step-*/{DIVERGENCE_REPORT}"))]
    for bundle in bundles[-1:]:
        before = intact.newest_before(int(bundle.name.removeprefix("step-")))
        start = None if before is None else intact.folders[before]
        try:
            stored = stored_job(job, (bundle / CONFIG).read_text(encoding="utf-8"), bundle)
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(format_error(str(bundle), f"cannot be read ({error})")) from error
        compare = partial(compare_divergence, job, bundle, start)
        yield Part(bundle, f"replay of the divergence at {bundle.name}", stored, start, compare)


def _print_comparisons(console: Console, part: Part, comparisons: Sequence[Comparison]) -> list[str]:
    rows = [[each.subject, each.fault or each.result] for each in comparisons]
    print_table(console, part.title, ["compared", "result"], rows)
    return [f"{part.path}: {part.title}: {each.subject}: {each.fault}." for each in comparisons if each.fault]
