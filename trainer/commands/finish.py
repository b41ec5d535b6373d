"""The end of `trainer train`: score the best weights, write the artifacts and the report."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from trainer.builders.checkpointed import CheckpointedModel, load_checkpointed_model, resolve_split, save_model
from trainer.builders.data import set_limits
from trainer.commands.decision import with_kept_rule
from trainer.commands.eval import Evaluation, evaluate_split, is_evaluation, print_scores
from trainer.commands.export import export_artifacts, print_artifacts, print_sparsity
from trainer.commands.report import write_page
from trainer.commands.run_folders import read_run
from trainer.commands.run_log import log_result
from trainer.config.jobs import TrainJob
from trainer.display import displayable
from trainer.errors import CheckpointError, ConfigError, ProofError
from trainer.files.atomic_io import set_aside
from trainer.layout import EVALUATIONS, REPORT
from trainer.predictions import is_predictions, predictions_file
from trainer.progress import phase
from trainer.report.page import is_own_page
from trainer.validation_sets import VALIDATION, file_stem, validation_splits

if TYPE_CHECKING:
    from trainer.builders.training import Training
    from trainer.report.tensorboard import TensorBoard

logger = logging.getLogger(__name__)


def finish(job: TrainJob, folder: Path, training: Training, console: Console, board: TensorBoard | None) -> None:
    """Evaluate and export the best checkpoint, as `trainer eval` and `trainer export` would."""
    run, state, is_shown = training.run, training.state, job.logger.console != "none"
    with phase("scoring the best weights"):
        best = _load_best(job, folder, "last" if state.best is None else "best")
        sets = validation_splits(best.encoded.splits)
        split = "test" if "test" in best.encoded.splits else resolve_split(VALIDATION, best.job)
        _keep_changes(folder / REPORT, is_own_page)
        evaluations = _evaluate(job, folder, best, (*sets, split) if job.eval.predictions else (split,))
    values = evaluations[split].values
    run.log("eval", state.step, {"split": split, "weights": best.weights, "best_step": best.step, **values})
    if board is not None:
        log_result(board, best, split, values, state.step)
    if is_shown:
        shown = evaluations if len(sets) > 1 else {split: evaluations[split]}
        print_scores(console, best, *shown.values())
    save_model(best)
    try:
        artifacts = export_artifacts(best, job.export, split)
    except (ConfigError, ProofError):
        _write_report(folder)  # everything else that the run has produced must be visible
        raise
    run.log("end", state.step, {"formats": [artifact.name for artifact in artifacts]})
    if is_shown:
        if job.prune is not None:
            print_sparsity(console, best.origin["pruning"])
        print_artifacts(console, artifacts)
    _write_report(folder)
    if is_shown:
        console.out(f"report in {displayable(str(folder / REPORT))}", highlight=False)


def _load_best(job: TrainJob, folder: Path, checkpoint: str) -> CheckpointedModel:
    best = load_checkpointed_model(folder, None, checkpoint=checkpoint, weights="auto", device=job.device)
    # The data may have been moved since the checkpoint was saved.
    best = replace(best, job=replace(best.job, data=job.data))
    try:
        best = with_kept_rule(best)
    except CheckpointError as error:  # training must not fail: its result needs no rule
        logger.warning("%s", error)
    set_limits(job.data)
    return best


def _evaluate(job: TrainJob, folder: Path, best: CheckpointedModel, splits: tuple[str, ...]) -> dict[str, Evaluation]:
    evaluations = {}
    for split in dict.fromkeys(splits):
        file = folder / EVALUATIONS / f"{file_stem(split)}.json"
        _keep_changes(file, is_evaluation)
        _keep_changes(predictions_file(file), is_predictions)
        keeps = job.eval.predictions
        evaluations[split] = evaluate_split(best, split, best.encoded, "fp32", {}, keeps_predictions=keeps)
    return evaluations


def _keep_changes(file: Path, is_own: Callable[[Path], bool]) -> None:
    """Rename a file that the run is about to write if the user has written or changed it: training must not fail."""
    if kept := set_aside(file, is_own):
        logger.warning("%s: was not written by trainer, or has been changed since; it is kept as %s", file, kept.name)


def _write_report(folder: Path) -> None:
    with phase("writing the report"):
        write_page(folder / REPORT, [read_run(str(folder))])
