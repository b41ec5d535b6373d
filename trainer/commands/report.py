"""`trainer report`: one offline HTML page about a run, or about several runs side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from trainer.commands.report_comparison import Comparison, answer_comparison, compare_with_best, decide
from trainer.commands.report_sections import (
    INTERVALS,
    MAX_NAMED,
    NamedRun,
    artifact_section,
    config_section,
    curve_section,
    data_section,
    differing_keys,
    environment_section,
    evaluation_section,
    interval_of,
    monitor_of,
    part_name,
    shown_split,
    shown_value,
    with_interval,
)
from trainer.commands.run_folders import RunRecord, read_runs, refuse_links
from trainer.commands.sweep import is_sweep_folder, write_sweep_page
from trainer.config.jobs import ReportJob
from trainer.config.sweep import read_jobs
from trainer.display import counted, escape_controls
from trainer.errors import CheckpointError, ConfigError, TrainerError
from trainer.files.atomic_io import refuse_to_replace, write_text
from trainer.layout import COMPARISON, DIVERGED, EVALUATIONS, REPORT, Document
from trainer.predictions import predictions_file, read_about
from trainer.report.answers import answer_section
from trainer.report.metric_names import words
from trainer.report.mistakes import mistake_section
from trainer.report.page import Page, Section, Table, Tile, is_own_page, render_page
from trainer.report.statistics import Baseline, measure_baseline

_MAX_NAMED_KEYS = 3
"""Runs that differ in at most this many keys are named by them."""

_MAX_KEYS = 4
"""Keys in the table of the runs."""

_NOT_COMPARED = (
    *("logger.", "metrics", "observers", "export.", "checkpoint.every", "checkpoint.keep", "eval.", "train.log_every"),
    *("loader.workers", "loader.prefetch", "loader.pin_memory", "data.cache_dir", "data.strict"),
)
"""Keys, or their starts, that change what a run records but not what it learns: nobody compares runs by them."""


def run(job: ReportJob, config: Document) -> None:
    """Write the page into the folder of the run or sweep or to `output`, and print its path.

    Raises:
        CheckpointError: There is no such run.
        ConfigError: The file cannot be written, or is from elsewhere.
    """
    if job.output is not None:
        refuse_to_replace("output", Path(job.output), force=job.force, is_own=is_own_page)
    if job.run is not None and not job.beside and is_sweep_folder(Path(job.run)):
        file = Path(job.output or Path(job.run) / REPORT)
        if job.output is None:
            refuse_to_replace("run", file, force=job.force, is_own=is_own_page)
        refuse_links(Path(job.run))
        write_sweep_page(Path(job.run), read_jobs(Path(job.run)), {}, file)
        print(escape_controls(str(file)))
        return
    records = read_runs([("run", job.run), *(("beside", path) for path in job.beside)])
    name = COMPARISON if job.beside else REPORT
    file = records[0].folder / name if job.output is None else Path(job.output)
    if job.output is None:
        refuse_to_replace("run", file, force=job.force, is_own=is_own_page)
    elif any(file.resolve().is_relative_to(record.folder.resolve()) for record in records):
        # The files of the runs are the input of the page.
        refuse_to_replace("output", file, force=False, is_own=is_own_page)
    write_page(file, records, CheckpointError if job.output is None else ConfigError)
    print(escape_controls(str(file)))


def write_page(file: Path, records: Sequence[RunRecord], error_type: type[TrainerError] = CheckpointError) -> None:
    """Write the page about runs.

    Raises:
        TrainerError: The file cannot be written; of the type `error_type`.
    """
    page = _page_of_run(records[0]) if len(records) == 1 else _page_of_runs(records)
    write_text(file, render_page(page), error_type)


def _page_of_run(record: RunRecord) -> Page:
    run = NamedRun(str(record.config.get("run", {}).get("name") or record.folder.name), record)
    parts = {group: _part_of(record.config, group) for group in ("task", "data", "model", "loss", "optimizer")}
    split = next((split for split in ("test", record.monitored_evaluation) if split in record.evaluations), "")
    file = predictions_file(record.folder / EVALUATIONS / f"{split}.json")
    about = read_about(file) if split and file.is_file() else None
    baseline = None if about is None else measure_baseline(file, about["kind"], about["classes"])
    sections = [
        *([] if about is None else [mistake_section(file, about), answer_section(file, about)]),
        curve_section([run]),
        evaluation_section([run]),
        data_section([run]),
        artifact_section([run]),
        config_section([run]),
        environment_section([run]),
    ]
    tiles = [*_score_tiles(record, split, baseline), *_tiles(record)]
    subtitle = ", ".join(f"{group} {name}" for group, name in parts.items() if group != "task" and name)
    title = f"{run.name}: {words(parts['task'])}"
    return Page(title, subtitle, _verdict(tiles), tiles, sections)


def _verdict(tiles: Sequence[Tile]) -> str:
    """Return the result in a sentence: the score, what to compare it with, and how the run ended."""
    by_label = {tile.label: tile for tile in tiles}
    score, baseline, end = tiles[0], by_label.get("Baseline"), tiles[-1]
    listed = []
    if score is not end and score.label != "Best step":
        against = f", against {baseline.value} for {baseline.detail}" if baseline else ""
        listed.append(f"{score.label} {score.value} ({score.detail}){against}")
    subject = "The run is" if end.value in ("complete", "not finished") else "The run"
    return ". ".join([*listed, f"{subject} {end.value}, {end.detail}"]) + "."


def _part_of(config: Document, group: str) -> str:
    part = config.get(group)
    return part_name(str(part.get("_target_", ""))) if isinstance(part, dict) else ""


def _score_tiles(record: RunRecord, split: str, baseline: Baseline | None) -> list[Tile]:
    """Return the monitored metric of a split, of the model and of the simplest answers."""
    scores, monitored = record.evaluations.get(split, {}), (record.best or {}).get("name")
    name = monitored if monitored in scores else next(iter(_metrics_of(scores)), None)
    if name is None:
        return []
    interval = interval_of(scores, str(name))
    detail = f"95% interval {interval[0]:.4f} to {interval[1]:.4f}" if interval else "of the best weights"
    label = f"{shown_split(split, scores).capitalize()} {words(str(name))}"
    tiles = [Tile(label, f"{scores[name]:.4f}", detail)]
    if baseline is not None and name in baseline.scores:
        tiles.append(Tile("Baseline", f"{baseline.scores[name]:.4f}", baseline.answer))
    return tiles


def _tiles(record: RunRecord) -> list[Tile]:
    """Return the best step, the time and the end of a run."""
    best = record.best or {}
    tiles = []
    if best:
        value, weights = best.get("value"), "averaged" if best.get("weights") == "ema" else "raw"
        metric = f"{record.validation_sets[0]} {words(str(best.get('name')))}"
        detail = f"{metric} {value:.4f}, {weights} weights" if value is not None else ""
        tiles.append(Tile("Best step", str(best["step"]), detail))
    seconds, rate = _training_time(record)
    if seconds:
        tiles.append(Tile("Training time", format_duration(seconds), f"{rate:.0f} samples per second"))
    tiles.append(Tile("End", *_how_it_ended(record)))
    return tiles


def _metrics_of(scores: Document) -> list[str]:
    return [key for key, value in scores.items() if isinstance(value, float)]


def _training_time(record: RunRecord) -> tuple[float, float]:
    """Return the seconds of the training steps, without evaluations, and the samples per second."""
    batch_size = record.config.get("train", {}).get("batch_size")
    rates = record.series("train", "samples_per_second")
    if not isinstance(batch_size, int) or not rates:
        return 0.0, 0.0
    seconds = samples = 0.0
    previous = 0
    for step, rate in rates.items():
        if rate > 0:
            samples += (step - previous) * batch_size
            seconds += (step - previous) * batch_size / rate
        previous = step
    return seconds, samples / seconds if seconds else 0.0


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units: 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s" if whole >= 10 else f"{seconds:.1f} s"
    hours, minutes = whole // 3600, whole % 3600 // 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def _how_it_ended(record: RunRecord) -> tuple[str, str]:
    """Return how a run ended, and at which step."""
    events = {event["event"]: event for event in record.events}
    last = record.events[-1]["step"] if record.events else 0
    totals = [event["total_steps"] for event in record.events if isinstance(event.get("total_steps"), int)]
    total = totals[-1] if totals else None  # a resumed run may have another duration
    steps = f"step {last}" if total is None else f"step {last} of {total}"
    if "early_end" in events:
        patience = record.config.get("train", {}).get("patience")
        return "stopped early", f"after {steps}: no better score for train.patience={patience}"
    if "end" in events:
        return "complete", f"{last} steps"
    if record.events and record.events[-1]["event"] == "stop":
        return "stopped", f"after {steps}, by {record.events[-1].get('reason')}; it can be resumed"
    if (record.folder / DIVERGED).is_dir():
        return "diverged", f"after {steps}"
    return "not finished", f"last event at {steps}"


def _page_of_runs(records: Sequence[RunRecord]) -> Page:
    """Return the page that compares runs, the best one first."""
    ranked = sorted(records, key=_rank)
    differing = _differing(ranked)
    runs = [NamedRun(name, record) for name, record in zip(_names(ranked, differing), ranked, strict=True)]
    monitor = str(monitor_of(runs) or "score")
    comparisons = compare_with_best(runs, monitor)
    is_tested = any(interval_of(run.record.evaluations.get("test", {}), monitor) for run in runs)
    note = INTERVALS if is_tested or any(comparison.metric for comparison in comparisons) else ""
    sections = [
        Section("Runs, best first", note, tables=[_ranking(runs, differing, monitor, comparisons)]),
        answer_comparison(runs, comparisons),
        curve_section(runs),
        evaluation_section(runs),
        data_section(runs),
        artifact_section(runs),
        config_section(runs),
        environment_section(runs),
    ]
    listed = differing[:_MAX_NAMED_KEYS]
    more = len(differing) - len(listed)
    keys = " and ".join([", ".join(listed[:-1])] * (len(listed) > 1 and not more) + listed[-1:]) if not more else ""
    keys = keys or f"{', '.join(listed)} and {counted(more, 'more key')}"
    title = f"{len(runs)} runs that differ in {keys}" if differing else f"{len(runs)} runs of one config"
    best = ranked[0].best or {}
    value = best.get("value")
    verdict = ""
    if value is not None:
        metric = f"{ranked[0].validation_sets[0]} {words(str(best['name']))}"
        verdict = f"Best: {runs[0].name} with {metric} {value:.4f} at step {best['step']}."
        verdict += f" {decide(comparisons, monitor)}"
    tasks = dict.fromkeys(words(_part_of(record.config, "task")) for record in ranked)
    return Page(title, ", ".join(tasks), verdict, [], sections)


def _rank(record: RunRecord) -> tuple[bool, str, float]:
    """Order runs by their validation scores; those without one, or by another metric, are apart."""
    best = record.best or {}
    value = best.get("value")
    if not isinstance(value, int | float):
        return True, "", 0.0
    return False, f"{best.get('name')} {best.get('split', '')}", -value if best.get("higher_is_better") else value


def _differing(records: Sequence[RunRecord]) -> list[str]:
    """Return the keys in which runs differ; of a part that differs, only its group."""
    keys = [key for key in differing_keys([record.config for record in records]) if not key.startswith(_NOT_COMPARED)]
    groups = {key.removesuffix("._target_") for key in keys if key.endswith("._target_")}
    inside = tuple(f"{group}." for group in groups)
    return [*sorted(groups), *(key for key in keys if not key.startswith(inside))]


def _value(record: RunRecord, key: str) -> str:
    part = record.config.get(key)
    return _part_of(record.config, key) if isinstance(part, dict) else shown_value(record.config, key)


def _names(records: Sequence[RunRecord], differing: Sequence[str]) -> list[str]:
    """Return what the runs differ in, if that is short and tells them apart; else their folders."""
    if 0 < len(differing) <= _MAX_NAMED_KEYS:
        names = [", ".join(f"{key}={_value(record, key)}" for key in differing) for record in records]
        if len({*names}) == len(names) and max(map(len, names)) <= 60:
            return names
    return _short_names(records)


def _short_names(records: Sequence[RunRecord]) -> list[str]:
    """Return the run folders without their common parent."""
    paths = [str(record.folder.absolute()) for record in records]
    common = os.path.commonpath(paths)
    return [
        os.path.relpath(path, common) if path != common else record.folder.name
        for path, record in zip(paths, records, strict=True)
    ]


def _ranking(
    runs: Sequence[NamedRun], differing: Sequence[str], metric: str, comparisons: Sequence[Comparison]
) -> Table:
    keys = differing[:_MAX_KEYS]
    against = [None, *(comparison.describe() for comparison in comparisons)]
    columns = [
        *(["rank"] if len(runs) > MAX_NAMED else []),
        "folder",
        *keys,
        f"validation {words(metric)}",
        *(["difference of the best run"] if any(against) else []),
        f"test {words(metric)}",
        "best step",
        "training time",
        "end",
    ]
    rows: list[list[object]] = []
    folders = _short_names([run.record for run in runs])
    for folder, run, difference in zip(folders, runs, against, strict=True):
        record, best = run.record, run.record.best or {}
        value = best.get("value") if best.get("name") == metric else None
        seconds, _ = _training_time(record)
        test = with_interval(record.evaluations.get("test", {}), metric)
        time = format_duration(seconds) if seconds else None
        state, detail = _how_it_ended(record)
        end = state if state == "complete" else f"{state}, {detail}"
        values = [*(_value(record, key) for key in keys), value, *([difference] if any(against) else [])]
        rank = [f"#{len(rows) + 1}"] if len(runs) > MAX_NAMED else []
        rows.append([*rank, folder, *values, test, best.get("step"), time, end])
    return Table("Ranked by the validation score", columns, rows, is_stacked=True)
