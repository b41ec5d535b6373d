"""`trainer eval`: a checkpoint's loss and metrics on a split."""

from __future__ import annotations

from typing import Any

from trainer.commands.folders import existing_run_folder, named_checkpoint
from trainer.config.jobs import EvalJob
from trainer.config.stored import job_from_text
from trainer.report.console import open_console, table


def run(job: EvalJob, config: dict[str, Any]) -> None:
    """Evaluates, prints a table and writes `eval/<split>.json` in the run folder.

    Rows that are not the run's own are compared with those of training, and their score has a name of its own.

    Args:
        job: The checked config.
        config: The same as plain data; not needed.
    """
    from trainer.builders.checkpointed import load_checkpointed_model
    from trainer.commands.scores import check_other, evaluate_split, other_data, read_split, result_rows

    trained = load_checkpointed_model(
        existing_run_folder(job.run),
        lambda text: job_from_text(text, trust=job.trust, overrides=job.stored_overrides),
        checkpoint=named_checkpoint(job.run, job.checkpoint),
        weights=job.weights,
        device=job.device,
    )
    rows = read_split(trained, job.split)
    changed = other_data(trained, job.split, rows)
    if changed:
        check_other(trained, job.split, rows)
    name, values = evaluate_split(trained, job.split, rows, job.precision, changed)
    table(open_console("auto"), str(trained.folder), *result_rows([(name, trained, values)]))
