"""A sweep with a name: run the jobs that are not complete, and write the table of all."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from trainer.checkpoint.lock import run_lock
from trainer.commands.out_of_fold import FINDINGS, read_fold_inputs, write_out_of_fold
from trainer.commands.run_folders import check_free, describe_score, read_best_score, refuse_links
from trainer.commands.sweep_jobs import Outcome, Start, run_here, run_in_processes
from trainer.config.sweep import Sweep, SweepJob, changed_keys, jobs_of, read_jobs
from trainer.display import counted, print_lines
from trainer.documents import SWEEP as SWEEP_SHAPE
from trainer.documents import read_document
from trainer.errors import CheckpointError, format_error, raise_if_any, show_value
from trainer.files.atomic_io import create_folder, write_text
from trainer.layout import LABEL_ERRORS, METRICS, REPORT, SWEEP, TABLE, Document
from trainer.report.console import open_console, print_table
from trainer.report.events import read_events
from trainer.report.metric_names import words
from trainer.report.page import Page, Section, Table, render_page
from trainer.report.sweep_table import (
    JobResult,
    describe_best,
    displayed_table,
    jobs_of_best,
    make_table,
    screen_table,
    table_csv,
)
from trainer.shapes import to_json

_FORMAT = 1
_MAX_SHOWN = 50
"""Rows with likely errors on the page; the CSV has all."""
_UNFINISHED = "not finished yet"


def run_sweep(sweep: Sweep, start: Start) -> int:
    """Run the jobs of a sweep that are not complete, and show the table of all; return the exit code.

    Args:
        sweep: The sweep.
        start: Runs a job in this process.

    Raises:
        CheckpointError: The folder cannot be used.
        ConfigError: The folder contains a sweep with another config.
    """
    check_free("sweep.name", sweep.folder)
    create_folder(sweep.folder, CheckpointError)
    with run_lock(sweep.folder):
        refuse_links(sweep.folder)
        jobs = _record(sweep, {job.name: job.changes for job in sweep.jobs})
        waiting = [job for job in sweep.jobs if not is_complete(sweep.folder / job.name)]
        if done := len(sweep.jobs) - len(waiting):
            print_lines(f"sweep: {counted(done, 'job', 'is', of=len(sweep.jobs))} complete already")
        failures: dict[str, Outcome] = {}
        trials: Trials | None = None
        if sweep.search is not None:
            from trainer.commands.search import Trials

            trials = Trials(sweep, sweep.search)
            failures |= trials.failures()
            run = run_in_processes(trials.jobs(), sweep.num_parallel, trials.should_stop)
        elif sweep.num_parallel == 1:
            run = run_here(waiting, start, sweep.folder)
        else:
            run = run_in_processes(iter(waiting), sweep.num_parallel)
        stopped: Outcome | None = None
        for job, outcome in run:
            if trials is not None:
                outcome = trials.end(job, outcome)
                jobs = _record(sweep, {job.name: job.changes})
            _announce(job, sweep.folder / job.name, outcome)
            if outcome is not None and outcome.is_stopped:
                stopped = outcome
            elif outcome is not None:
                failures[job.name] = outcome
            _write_table(sweep.folder, jobs, failures)
        columns, rows = _write_table(sweep.folder, jobs, failures)
        errors = write_sweep_page(sweep.folder, jobs, failures)
        title = f"{sweep.folder}: {describe_best(columns, rows)}"
        print_table(open_console("auto"), title, *screen_table(columns, rows))
        if errors:
            _print_label_errors(sweep.folder / LABEL_ERRORS, errors)
    if stopped is not None:
        print_lines("sweep: stopped. Continue it with the same command.")
        return stopped.exit_code
    return next((failure.exit_code for failure in failures.values() if failure.exit_code), 0)


def _print_label_errors(file: Path, errors: Sequence[Sequence[object]]) -> None:
    """Print how many rows of a file have each finding."""
    counts = Counter(str(row[0]) for row in errors)
    shown = ", ".join(f"{counts[finding]} {finding}" for finding in FINDINGS if counts[finding])
    print_lines(f"{file}: {counted(len(errors), 'row')}: {shown}")


def is_complete(folder: Path) -> bool:
    """Return whether the run in a folder has reached its end, artifacts included."""
    if not (folder / METRICS).is_file():
        return False
    events = read_events(folder / METRICS)
    return bool(events) and events[-1]["event"] == "end"


def _record(sweep: Sweep, new: Mapping[str, Mapping[str, str]]) -> dict[str, Mapping[str, str]]:
    """Write the sweep's document with new jobs, and return the changes of all jobs, earlier commands first.

    Raises:
        ConfigError: The document is about a sweep with another config.
    """
    file = sweep.folder / SWEEP
    document: Document = {"format": _FORMAT, "config": sweep.config, "jobs": []}
    if sweep.search is not None:
        document["search"] = {key: asdict(parameter) for key, parameter in sweep.search.space.items()}
    document = json.loads(json.dumps(document, default=str))
    jobs: dict[str, Mapping[str, str]] = {}
    if file.exists():
        stored = read_document(file, SWEEP_SHAPE, "Choose another sweep.name")
        problems = changed_keys(stored["config"], document["config"])
        if (old := stored.get("search")) != (new_search := document.get("search")):
            remedy = f"Search in {show_value(old)}, or choose another sweep.name"
            problems.append(format_error("sweep.trials", "the sweep searches other values", remedy, value=new_search))
        raise_if_any(*problems)
        jobs = {name: sweep.earlier.get(name, changes) for name, changes in jobs_of(stored, file).items()}
    jobs |= new
    document["jobs"] = [{"name": name, "changes": dict(changes)} for name, changes in jobs.items()]
    write_text(file, to_json(document, indent=1) + "\n")
    return jobs


def _announce(job: SweepJob, folder: Path, outcome: Outcome | None) -> None:
    """Print the score of a job that has ended, or why it has none."""
    if outcome is None:
        print_lines(f"{job.name}: {describe_score(read_best_score(folder))}")
    else:
        first, *others = outcome.messages
        print_lines(f"{job.name}: {first}", *others)


def _write_table(
    folder: Path, jobs: Mapping[str, Mapping[str, str]], failures: Mapping[str, Outcome]
) -> tuple[list[str], list[list[object]]]:
    """Write the table of a sweep; return its columns and rows."""
    columns, rows = make_table([_result(folder / name, jobs[name], failures.get(name)) for name in jobs])
    write_text(folder / TABLE, table_csv(columns, rows))
    return columns, rows


def write_sweep_page(
    folder: Path, jobs: Mapping[str, Mapping[str, str]], failures: Mapping[str, Outcome], file: Path | None = None
) -> list[list[object]]:
    """Write the page of a sweep and, if it has folds, what their models say about every row.

    Args:
        folder: The folder of the sweep.
        jobs: The keys that each job changes, by its name.
        failures: The jobs that have failed.
        file: The file of the page; None is `report.html` in the folder.

    Returns:
        The rows with likely errors, as in `label_errors.csv`.
    """
    results = {name: _result(folder / name, changes, failures.get(name)) for name, changes in jobs.items()}
    best = jobs_of_best(results)
    changes = {name: result.changes for name, result in best.items()}
    errors = write_out_of_fold(folder, changes)
    suspects = _suspect_table(errors, read_fold_inputs(folder, changes)) if errors else Table("", [], [])
    write_text(file or folder / REPORT, render_page(_page(folder, results, len(errors), suspects)))
    return errors


def is_sweep_folder(folder: Path) -> bool:
    """Return whether a folder belongs to a sweep with a name."""
    return (folder / SWEEP).is_file()


def read_results(folder: Path) -> dict[str, JobResult]:
    """Return the result of each job of a sweep, by its name.

    Raises:
        CheckpointError: The document of the sweep or of a job cannot be read, or the folder contains a symbolic link.
    """
    refuse_links(folder)
    return {name: _result(folder / name, changes, None) for name, changes in read_jobs(folder).items()}


def _page(folder: Path, results: Mapping[str, JobResult], num_errors: int, suspects: Table) -> Page:
    """Return the page of a sweep: the table of its settings, the one of its jobs, and rows with likely errors."""
    columns, rows = make_table(list(results.values()))
    place = columns.index("metric")
    rows = [[*row[:place], words(str(row[place])), *row[place + 1 :]] for row in rows]
    keys = list(dict.fromkeys(key for result in results.values() for key in result.changes))
    names = ["run", *keys, "value", "reason"]
    jobs = [
        [name, *map(result.changes.get, keys), (result.score or {}).get("value"), result.reason]
        for name, result in results.items()
    ]
    if not any(result.reason for result in results.values()):
        names, jobs = names[:-1], [job[:-1] for job in jobs]
    note = (
        "mean: the monitored metric over seeds and folds; sd: its standard deviation. With three jobs or more, the "
        "mean has a 95 % interval by Student's t distribution."
    )
    all_shown, some_shown = f"The {counted(num_errors, 'row')}", f"The first {_MAX_SHOWN} of {num_errors:,} rows"
    count = all_shown if num_errors <= _MAX_SHOWN else some_shown
    suspect = (
        f"{count} of {LABEL_ERRORS}, by models that were not trained on them. To correct a label, write the right one "
        f"into the column correction of that file, and train with data.corrections={folder / LABEL_ERRORS}."
    )
    sections = [
        Section("Settings", note, tables=[Table("Best first", *displayed_table(columns, rows), is_stacked=True)]),
        Section(
            "Likely wrong labels, contradictions and hard rows",
            suspect,
            tables=[suspects],
        ),
        Section("Jobs", tables=[Table("All jobs", names, jobs, is_stacked=True)]),
    ]
    return Page(
        f"Sweep {folder.name}", f"over {', '.join(keys)}" if keys else "", describe_best(columns, rows), [], sections
    )


def _suspect_table(
    errors: Sequence[Sequence[object]], inputs: Mapping[tuple[object, object], Mapping[str, str]]
) -> Table:
    """Return the first rows with likely errors, with what the models read and the proposed label.

    Args:
        errors: The rows of `label_errors.csv`.
        inputs: What the models read, see `read_fold_inputs`.
    """
    from trainer.report.mistakes import show_input

    columns = [
        *("finding", "file and row", "input", "label", "proposed correction"),
        *("probability of the label", "probability of the correction", "loss", "your correction"),
    ]
    rows: list[list[object]] = []
    for finding, file, number, *rest, correction in errors[:_MAX_SHOWN]:
        place = ":".join(str(part) for part in (file, number) if part is not None)
        rows.append([finding, place, show_input(inputs.get((file, number), {})), *rest, correction])
    return Table("Rows", columns, rows, is_stacked=True).without_empty_columns()


def _result(folder: Path, changes: Mapping[str, str], failure: Outcome | None) -> JobResult:
    if failure is not None:
        return JobResult(changes, None, failure.messages[0].partition("\n")[0])
    if not is_complete(folder):
        return JobResult(changes, None, _UNFINISHED)
    return JobResult(changes, read_best_score(folder))
