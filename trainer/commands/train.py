"""`trainer train`: builds, fits, scores the best weights on the test split, and writes the artifacts."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainer.commands.announcements import announce_early_end, announce_sparsity, announce_start
from trainer.commands.folders import (
    argument,
    existing_run_folder,
    fixed_run_folder,
    new_run_folder,
    unless_started,
)
from trainer.config.jobs import TrainJob
from trainer.config.policy import resume_config
from trainer.config.stored import config_text, job_from_text, stored_config
from trainer.errors import CheckpointError, Interrupted, ProofError
from trainer.layout import CHECKPOINTS, CONFIG, DIVERGED, LOG, LR_RANGE, METRICS, REPORT, TENSORBOARD, step_name
from trainer.report.console import open_console, table
from trainer.signals import StopSignals

if TYPE_CHECKING:
    from trainer.builders.training import Training
    from trainer.checkpoint.store import Saver, Snapshot
    from trainer.report.reports import Sink
    from trainer.run import DivergenceReport

logger = logging.getLogger(__name__)


def run(job: TrainJob, config: dict[str, Any]) -> None:
    """Trains a job to its end.

    Args:
        job: The checked config.
        config: The same as plain data, to be stored.

    Raises:
        TrainerError: Whatever a user can mend or has asked for.
    """
    from trainer.checkpoint.lock import run_lock

    cwd = Path(config["run"]["cwd"] or "").expanduser().absolute()
    config = config | {"run": config["run"] | {"cwd": str(cwd)}}
    with StopSignals() as signals:
        own = job.run.dir is None or not Path(job.run.dir).exists()
        folder = _folder(job)
        try:
            with run_lock(folder), unless_started(folder, own=own):
                snapshot = _snapshot(job, folder)
                notes: list[str] = []
                if snapshot is not None and job.resume == "auto":
                    config, notes = resume_config(stored_config(snapshot.documents[CONFIG]), config)
                    job = replace(job, optimizer=config["optimizer"])
                _run(job, config, folder, snapshot, signals, notes)
        except Interrupted as error:
            raise Interrupted(*error.messages, _way_on(folder)) from error


def _folder(job: TrainJob) -> Path:
    if job.resume is None:
        return new_run_folder(job.run)
    return fixed_run_folder(job.run) if job.resume == "auto" else existing_run_folder(job.resume)


def _snapshot(job: TrainJob, folder: Path) -> Snapshot | None:
    from trainer.checkpoint.store import Store

    store = Store(folder / CHECKPOINTS, job.checkpoint.keep)
    if job.resume is None or (job.resume == "auto" and not store.list()):
        return None
    named = Path(job.resume).name
    return store.load(named if named.startswith("step-") else "last")


def _way_on(folder: Path) -> str:
    if any((folder / CHECKPOINTS).glob("step-*")):
        return f"go on with: trainer train {argument('resume', folder)}"
    return "no checkpoint was taken yet: start it again"


def _run(
    job: TrainJob,
    config: dict[str, Any],
    folder: Path,
    snapshot: Snapshot | None,
    signals: StopSignals,
    notes: list[str],
) -> None:
    from trainer.builders.training import build_training
    from trainer.checkpoint.store import Saver, Store
    from trainer.loop import fit
    from trainer.report.logs import run_logs
    from trainer.report.reports import Reports
    from trainer.run import RunOutputs

    console = open_console(job.logger.console)
    first = not (folder / METRICS).exists()
    with ExitStack() as stack:
        quiet = job.logger.console == "none"
        write_log = stack.enter_context(run_logs(folder / LOG, console, quiet=quiet))
        logger.info("run folder: %s", folder)
        for note in notes:
            logger.info(note)
        if job.optimizer.get("lr") == "auto":
            found = job.optimizer | {"lr": _find_lr(job, folder)}
            job, config = replace(job, optimizer=found), config | {"optimizer": found}
        text = config_text(config)
        saver = Saver(Store(folder / CHECKPOINTS, job.checkpoint.keep))
        stack.callback(saver.close)
        reports = stack.enter_context(Reports())
        outlets = RunOutputs(
            report=reports,
            save=saver.submit,
            save_divergence=lambda findings: _keep_findings(findings, text, folder, saver),
        )
        training = build_training(job, text, outlets, snapshot, stack)
        # It can start: until here nothing of a run that is resumed has changed, and nothing of a new one is there.
        (folder / CONFIG).write_text(text, encoding="utf-8")
        write_log()
        reports.add(*_sinks(job, folder, console, training.run.steps.total))
        announce_start(job, training, first)
        if job.logger.console != "none":
            table(console, "data", *training.data_report.table())
        with signals.deferred():
            fit(training.run, training.state, signals.should_stop)
        saver.close()
        signals.raise_if_received()
        announce_early_end(training)
        announce_sparsity(training)
        _finish(job, folder, training, console)


def _find_lr(job: TrainJob, folder: Path) -> float:
    """The learning rate by a range test; its curve is kept in `lr_range.json`."""
    from trainer.builders.range_test import range_test, steepest_lr

    curve = range_test(job)
    (folder / LR_RANGE).write_text(json.dumps(vars(curve)) + "\n", encoding="utf-8")
    # Two digits: the rest is noise, and it is to be read in the config.
    lr = float(f"{steepest_lr(curve):.1e}")
    logger.info("optimizer.lr=auto: %g, where the loss fell fastest; the curve: %s", lr, folder / LR_RANGE)
    return lr


def _sinks(job: TrainJob, folder: Path, console: Console, total_steps: int) -> Iterator[Sink | None]:
    """Where the events of a run go: the screen, `metrics.jsonl` and, where it is wanted, TensorBoard."""
    from trainer.report.console import screen
    from trainer.report.jsonl import JsonLines
    from trainer.report.tensorboard import TensorBoard

    yield screen(job.logger.console, console, total_steps=total_steps)
    yield JsonLines(folder / METRICS)
    yield TensorBoard(folder / TENSORBOARD) if job.logger.tensorboard else None


def _keep_findings(findings: DivergenceReport, text: str, folder: Path, saver: Saver) -> str:
    """Writes what is known of a step that diverged into the run folder; the line of the message that says where."""
    from trainer.checkpoint.listing import find_newest_intact
    from trainer.divergence import write_divergence

    try:
        saver.close()
    except CheckpointError as error:
        logger.error("the last checkpoint was not saved: %s", error)
    bundle = folder / DIVERGED / step_name(findings.step)
    try:
        before = find_newest_intact(folder / CHECKPOINTS, below=findings.step)
        write_divergence(bundle, findings, text, None if before is None else f"{CHECKPOINTS}/{before.folder.name}")
    except (OSError, CheckpointError) as error:
        return f"  What was found could not be kept: {error}"
    return f"  What was found: {bundle}. To replay it: trainer verify {argument('run', folder)}"


def _finish(job: TrainJob, folder: Path, training: Training, console: Console) -> None:
    """Evaluates and exports the best checkpoint, just as `eval` and `export` would."""
    from trainer.builders.checkpointed import load_checkpointed_model, save_model
    from trainer.commands.export import export_trained, show_artifacts
    from trainer.commands.pruned import show_sparsity
    from trainer.commands.report import write_page
    from trainer.commands.results import results
    from trainer.commands.scores import evaluate_split, result_rows

    checkpoint = "last" if training.state.best is None else "best"
    best = load_checkpointed_model(
        folder, lambda text: job_from_text(text, trust=None), checkpoint=checkpoint, weights="auto", device=job.device
    )
    split = "test" if "test" in best.encoded.splits else "validation"
    _, values = evaluate_split(best, split, best.encoded.splits[split], "fp32", {})
    run, state = training.run, training.state
    event = {"split": split, "weights": best.weights, "best_step": best.step, **values}
    run.log("eval", state.step, event)
    save_model(best)
    try:
        artifacts = export_trained(best, job.export, split)
    except ProofError:  # of an artifact; all else that the run has learnt is to be seen
        write_page(folder / REPORT, [results(str(folder))])
        raise
    run.log("end", state.step, {"formats": [artifact.name for artifact in artifacts]})
    if job.logger.console != "none":
        columns, rows = result_rows([(split, best, values)])
        table(console, f"{folder}", columns, rows)
        if job.prune is not None:
            show_sparsity(console, best.origin["pruning"])
        show_artifacts(console, artifacts)
    write_page(folder / REPORT, [results(str(folder))])
