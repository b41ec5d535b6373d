"""`trainer eval`: a checkpoint's loss and metrics on a split."""

from __future__ import annotations

from typing import Any

from trainer.commands.folders import existing_run_folder, named_checkpoint
from trainer.config.jobs import EvalJob
from trainer.config.stored import job_from_text
from trainer.report.console import open_console, table


def run(job: EvalJob, config: dict[str, Any]) -> None:
    """Evaluates, prints a table and writes `eval/<split>.json` in the run folder.

    Args:
        job: The checked config.
        config: The same as plain data; not needed.
    """
    from trainer.commands.trained import evaluate_split, load_trained, result_rows

    trained = load_trained(
        existing_run_folder(job.run),
        lambda text: job_from_text(text, trust=job.trust, overrides=job.stored_overrides),
        checkpoint=named_checkpoint(job.run, job.checkpoint),
        weights=job.weights,
        device=job.device,
    )
    values = evaluate_split(trained, job.split, job.precision)
    columns, rows = result_rows([(job.split, trained, values)])
    table(open_console("auto"), str(trained.folder), columns, rows)
