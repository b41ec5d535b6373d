"""`trainer train`: train, evaluate the best weights on the test split, and write the artifacts."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trainer.checkpoint.listing import find_newest_intact, list_newest_first
from trainer.commands.resume_advice import advise_resume, resume_instruction_added
from trainer.commands.run_folders import (
    check_new_folder,
    claim_fixed_folder,
    create_run_folder,
    discard_unless_started,
    find_run_folder,
    fixed_folder,
    read_best_score,
    read_task_state,
    run_argument,
)
from trainer.commands.run_log import (
    log_early_stop,
    log_sparsity,
    log_start,
    log_stop,
    open_logs,
    open_sinks,
    show_start,
)
from trainer.config.jobs import TrainJob
from trainer.config.resume import resume_config
from trainer.config.stored import config_text, parse_stored_config
from trainer.config.trust import names_environment, resolve_environment
from trainer.distributed.environment import is_first_rank, is_rank, note_run_folder, num_processes
from trainer.distributed.launch import launch
from trainer.durations import parse_time
from trainer.errors import (
    CheckpointError,
    DivergedError,
    Interrupted,
    ReportedError,
    TrainerError,
)
from trainer.files.atomic_io import write_text
from trainer.layout import (
    CHECKPOINTS,
    CONFIG,
    DIVERGED,
    LR_RANGE,
    METRICS,
    TENSORBOARD,
    Document,
    expand_home,
    step_name,
)
from trainer.progress import phase, shown_on
from trainer.report.console import open_console
from trainer.report.events import read_events
from trainer.report.screen import Display, Lines, open_screen
from trainer.shapes import to_json
from trainer.signals import StopSignals

if TYPE_CHECKING:
    from trainer.builders.training import Training
    from trainer.checkpoint.saver import Saver
    from trainer.checkpoint.snapshot import Snapshot
    from trainer.distributed.ranks import Ranks
    from trainer.protocols import StateDict
    from trainer.report.events import Reports
    from trainer.report.tensorboard import TensorBoard
    from trainer.run import DivergenceReport, RunOutputs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The starting point of a run.

    Attributes:
        job: The checked config.
        config: The same as plain data, to be stored.
        folder: The run folder.
        step: The step of the checkpoint to resume from; None for a new run.
        notes: What changes when the run resumes.
    """

    job: TrainJob
    config: Document
    folder: Path
    step: int | None
    notes: list[str]


def run(job: TrainJob, config: Document) -> Document | None:
    """Train a job to its end, in this process or in one for each of its devices; return its best score.

    The score is the one of the best checkpoint, as its `state.json` contains it; None if no checkpoint has one.

    Raises:
        TrainerError: Every error that the user can fix, and every stop that the user has requested.
    """
    folder = train_to_end(job, config)
    return None if folder is None else read_best_score(folder)


def train_to_end(job: TrainJob, config: Document) -> Path | None:
    """Train as `run` does; return the run folder, or None if other processes have trained and ended without a note."""
    if job.resume is None and not is_rank():  # another process of the same run may have made the folder
        check_new_folder(job.run)  # before PyTorch is loaded
    devices = num_processes(job.devices, job.device)
    config = config | {"devices": devices, "shard": job.shard if devices > 1 else False}
    if devices > 1 and not is_rank():
        return launch("train", config, (), devices, job.launch.grace, advise_resume)
    if not names_environment(config["run"]["cwd"]):
        cwd = Path(expand_home(job.run.cwd or "")).absolute()
        config = config | {"run": config["run"] | {"cwd": str(cwd)}}
    with (
        resume_instruction_added(None),
        StopSignals(ends_on_second=not is_rank(), max_seconds=_max_seconds(job)) as signals,
        ExitStack() as stack,
    ):
        # The files of the run tell the same as the screen, so a run outlives `trainer train | head`.
        console = open_console(job.logger.console, outlives_reader=True)
        screen = open_screen(job.logger.console, console) if is_first_rank() else None
        stack.enter_context(shown_on(screen))
        if "torch" not in sys.modules:  # else this is a later job of a sweep
            with phase("loading PyTorch"):
                import trainer.builders.training  # noqa: F401  slow; here, so that the screen says so
        if devices == 1:
            start, snapshot = _prepare(job, config, stack)
            _train_alone(start, snapshot, signals, console, screen)
        else:
            start = _train_with_others(job, config, signals, stack, console, screen)
        return start.folder


def _max_seconds(job: TrainJob) -> float | None:
    seconds = parse_time(job.train.max_time)
    return None if seconds is None else float(seconds)


def _prepare(job: TrainJob, config: Document, stack: ExitStack) -> tuple[Start, Snapshot | None]:
    """Lock the run folder until the stack is closed, and read the checkpoint to resume from."""
    from trainer.checkpoint.lock import run_lock

    created = job.run.dir is None or not Path(job.run.dir).exists()
    folder = _find_or_create_folder(job)
    stack.enter_context(resume_instruction_added(folder))
    stack.enter_context(run_lock(folder))
    note_run_folder(folder)
    stack.enter_context(discard_unless_started(folder, created=created))
    snapshot = _load_snapshot(job, folder)
    notes: list[str] = []
    if snapshot is not None and (folder / METRICS).is_file():
        read_events(folder / METRICS)  # the report at the end needs it: damage is reported before the run continues
    if snapshot is not None and job.resume == "auto":
        config, notes = resume_config(parse_stored_config(snapshot.text(CONFIG)), config)
        job = replace(job, optimizer=resolve_environment(config["optimizer"]))
    return Start(job, config, folder, None if snapshot is None else snapshot.step, notes), snapshot


def _train_alone(
    start: Start, snapshot: Snapshot | None, signals: StopSignals, console: Console, screen: Display | Lines | None
) -> None:
    from trainer.distributed.ranks import Ranks

    _train(start, snapshot, signals, Ranks(), ExitStack(), console, screen)


def _train_with_others(
    job: TrainJob,
    config: Document,
    signals: StopSignals,
    stack: ExitStack,
    console: Console,
    screen: Display | Lines | None,
) -> Start:
    """Train in this process, one of several: the first one prepares the run for all. Return the starting point."""
    from trainer.builders.training import join_devices
    from trainer.checkpoint.lock import require_shared
    from trainer.checkpoint.store import Store

    ranks = join_devices(job, _stored_task_state(job))
    group = stack.enter_context(ExitStack())
    # From here on, the processes agree when to stop.
    group.enter_context(signals.deferred())
    group.callback(ranks.close)
    start: Start | None = None
    snapshot: Snapshot | None = None
    problem: TrainerError | None = None
    if ranks.is_first:
        try:
            start, snapshot = _prepare(job, config, stack)
        except TrainerError as error:
            problem = error
    exit_code, start = ranks.broadcast((None if problem is None else problem.exit_code, start))
    if exit_code is not None:
        raise problem or ReportedError(exit_code)
    assert start is not None
    require_shared(start.folder, ranks)
    if not ranks.is_first:
        stack.enter_context(resume_instruction_added(start.folder))
        if start.step is not None:
            store = Store(start.folder / CHECKPOINTS, job.checkpoint.keep)
            snapshot = store.load(f"step-{start.step}", on_demand=bool(job.shard))
    _train(start, snapshot, signals, ranks, group, console, screen)
    return start


def _stored_task_state(job: TrainJob) -> StateDict | None:
    """Return the state of the task in the newest checkpoint of the run that a job resumes; None for a new run."""
    with suppress(CheckpointError):  # the first process reports what is wrong with the run
        folder: Path | None = None
        if job.resume == "auto":
            folder = fixed_folder(job.run)
        elif job.resume is not None:
            folder = find_run_folder(job.resume, "resume")
        for checkpoint in [] if folder is None else list_newest_first(folder / CHECKPOINTS):
            if checkpoint.fault is None and (state := read_task_state(checkpoint.folder)):
                return state
    return None


def _find_or_create_folder(job: TrainJob) -> Path:
    if job.resume is None:
        return create_run_folder(job.run)
    return claim_fixed_folder(job.run) if job.resume == "auto" else find_run_folder(job.resume)


def _load_snapshot(job: TrainJob, folder: Path) -> Snapshot | None:
    from trainer.checkpoint.store import Store

    store = Store(folder / CHECKPOINTS, job.checkpoint.keep)
    if job.resume is None or (job.resume == "auto" and not store.list()):
        return None
    name = Path(job.resume).name
    return store.load(name if name.startswith("step-") else "last", on_demand=bool(job.shard))


def _train(
    start: Start,
    snapshot: Snapshot | None,
    signals: StopSignals,
    ranks: Ranks,
    group: ExitStack,
    console: Console,
    screen: Display | Lines | None,
) -> None:
    """Train to the end.

    Args:
        start: The starting point of the run.
        snapshot: The checkpoint to resume from; None for a new run.
        signals: Stop the run.
        ranks: The processes that train together.
        group: Is closed when they have trained; the first one then goes on without the others.
        console: Standard output.
        screen: Shows the run there; None shows nothing.
    """
    from trainer.builders.observers import build_observers
    from trainer.builders.training import build_training
    from trainer.report.events import Reports
    from trainer.report.tensorboard import TensorBoard

    job, config, folder = start.job, start.config, start.folder
    signals.at_second = partial(advise_resume, folder)
    is_new = not (folder / METRICS).exists()
    with ExitStack() as stack:
        open_log = open_logs(job, folder, start.notes, ranks, console, stack)
        if job.optimizer.get("lr") == "auto":
            lr = {"lr": _find_lr(job, folder, ranks)}
            job, config = replace(job, optimizer=job.optimizer | lr), config | {"optimizer": config["optimizer"] | lr}
        text = config_text(config)
        reports = stack.enter_context(Reports())
        board = TensorBoard(folder / TENSORBOARD) if ranks.is_first and job.logger.tensorboard else None
        saver = _open_saver(job, folder, ranks, stack)
        outputs = _connect_outputs(reports, board, saver, text, folder, ranks)
        training = build_training(job, text, outputs, snapshot, stack, ranks)
        _stop_if_agreed(signals, ranks)
        if ranks.is_first:
            observers = build_observers(job, config, folder, training.run.steps)
            # The run can start. Up to here a resumed run's folder is unchanged and a new run's folder is empty.
            write_text(folder / CONFIG, text)
            open_log()
            reports.add(screen, *open_sinks(folder, board), observers)
            if screen is not None:
                show_start(job, start.notes, training, folder, console, screen)
            log_start(job, training, snapshot, is_new)
        _fit(training, signals, saver, screen)
        group.close()
        if not ranks.is_first:
            return
        signals.raise_if_received()
        log_early_stop(training)
        log_sparsity(training)
        from trainer.commands.finish import finish  # now, because it loads what training does not need

        finish(job, folder, training, console, board)


def _open_saver(job: TrainJob, folder: Path, ranks: Ranks, stack: ExitStack) -> Saver | None:
    """Return what saves the checkpoints until the stack is closed; None if this process takes no part in that."""
    from trainer.checkpoint.saver import Saver
    from trainer.checkpoint.store import Store
    from trainer.distributed.sharding import count_shards

    sharded = count_shards(job.shard, ranks) > 1
    if not ranks.is_first and not sharded:
        return None
    saver = Saver(Store(folder / CHECKPOINTS, job.checkpoint.keep), ranks.for_thread() if sharded else None)
    stack.callback(saver.close)
    return saver


def _connect_outputs(
    reports: Reports, board: TensorBoard | None, saver: Saver | None, text: str, folder: Path, ranks: Ranks
) -> RunOutputs:
    """Return the outputs of this process: its reports, its checkpoints, and the diagnosis of a divergence."""
    from trainer.run import RunOutputs

    outputs = RunOutputs(report=reports)
    if board is not None:
        outputs = replace(outputs, add_histogram=board.add_histogram)
    if saver is not None:
        outputs = replace(outputs, save=saver.submit, when_saved=saver.when_saved)
        if ranks.is_first:
            save_divergence = partial(_save_divergence, text=text, folder=folder, saver=saver)
            outputs = replace(outputs, save_divergence=save_divergence)
    return outputs


def _fit(training: Training, signals: StopSignals, saver: Saver | None, screen: Display | Lines | None) -> None:
    """Train until the end, a signal, a limit of time or a divergence.

    All processes return once the last checkpoint is on the disk.

    Args:
        training: The run.
        signals: Stop the run.
        saver: Saves the checkpoints; None in a process that does not take part in that.
        screen: Shows the steps; None shows nothing.
    """
    from trainer.distributed.ranks import lost_rank_reported
    from trainer.loop import fit

    ranks = training.run.ranks
    stop_agreed = ranks.share_flag(lambda: signals.should_stop() or signals.is_out_of_time())

    def should_stop() -> bool:
        if screen is not None:
            screen.show_step(training.state.step)
        return stop_agreed()

    with signals.deferred():
        try:
            with lost_rank_reported(ranks):
                fit(training.run, training.state, should_stop)
        except (Interrupted, DivergedError) as error:  # all processes raise it after the same step
            if saver is not None:
                saver.close()
            ranks.any(False)
            if not ranks.is_first:
                raise ReportedError(error.exit_code) from error
            if isinstance(error, Interrupted):
                raise log_stop(training, signals) from error
            raise
        if saver is not None:
            with phase("saving the last checkpoint"):
                saver.close()
        if screen is not None:
            screen.end_training()
        _stop_if_agreed(signals, ranks)


def _stop_if_agreed(signals: StopSignals, ranks: Ranks) -> None:
    """Stop all processes if one of them has received a signal.

    Raises:
        Interrupted: One has.
    """
    if ranks.any(signals.should_stop()):
        signals.raise_if_received()
        raise Interrupted("stopped by a signal to another process of the run")


def _find_lr(job: TrainJob, folder: Path, ranks: Ranks) -> float:
    """Return the learning rate that a range test finds; its curve is kept in `lr_range.json`."""
    from trainer.builders.range_test import range_test, steepest_lr

    with phase("searching for the learning rate"):
        curve = range_test(job, ranks)
    if ranks.is_first:
        write_text(folder / LR_RANGE, to_json(vars(curve)) + "\n")
    # Two digits: the rest is noise, and people read it in the config.
    lr = float(f"{steepest_lr(curve):.1e}")
    logger.info("optimizer.lr=auto: %g, where the loss fell fastest (curve: %s)", lr, folder / LR_RANGE)
    return lr


def _save_divergence(divergence: DivergenceReport, *, text: str, folder: Path, saver: Saver) -> str:
    """Write the report of a step that diverged into the run folder; return the line that says where it is."""
    from trainer.divergence import write_divergence

    try:
        saver.close()
    except CheckpointError as error:
        logger.error("the last checkpoint was not saved: %s", error)
    bundle = folder / DIVERGED / step_name(divergence.step)
    try:
        before = find_newest_intact(folder / CHECKPOINTS, below=divergence.step)
        write_divergence(bundle, divergence, text, None if before is None else f"{CHECKPOINTS}/{before.folder.name}")
    except CheckpointError as error:
        return f"  The report of the divergence could not be saved: {error}"
    return f"  Report: {bundle}. Replay it with: trainer verify {run_argument('run', folder)}"
