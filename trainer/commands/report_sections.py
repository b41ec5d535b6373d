"""The sections of a report: curves, evaluations, data, artifacts, environment and config of one or several runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from trainer.commands.run_folders import RunRecord
from trainer.config import schema
from trainer.config.groups import Groups, own_folder
from trainer.config.jobs import TrainJob
from trainer.display import counted, masked_config
from trainer.documents import flatten, read_export_manifest
from trainer.export.timing import describe_disturbed
from trainer.layout import LOG, RANK_LOGS, Document, export_folders
from trainer.report.charts import Line, draw_lines
from trainer.report.console import format_bytes, format_number
from trainer.report.metric_names import monitored_first, words
from trainer.report.page import Figure, Section, Table
from trainer.shapes import to_json
from trainer.validation_sets import file_stem, is_validation

_NOT_PLOTTED: Final = frozenset({"event", "step", "epoch", "split", "weights", "best_step", "loss"})

_TRAINING: Final = {
    "lr": ("Learning rate", "learning rate", 1.0),
    "grad_norm": ("Gradient norm", "2-norm", 1.0),
    "samples_per_second": ("Throughput", "samples per second", 1.0),
    "tokens_per_second": ("Throughput in tokens", "tokens per second", 1.0),
    "mfu": ("Model FLOPs utilization", "share of the peak", 1.0),
    "memory": ("Peak memory", "GiB", 2.0**-30),
    "scale": ("Loss scale", "factor", 1.0),
}
"""Heading, axis title and factor of the values of a `train` event, in the order of their charts."""

_UNBOUNDED: Final = frozenset({"loss", "perplexity", "mae", "rmse", *_TRAINING})
_FAR_APART: Final = frozenset({"loss", "perplexity", "grad_norm"})
"""Values whose axis may be logarithmic."""

_FROM_ZERO: Final = frozenset({"lr", "samples_per_second", "tokens_per_second", "mfu", "memory"})

_LARGEST_LOG: Final = 2**26
"""Bytes of a log that are searched for warnings; those about the data are at its beginning."""

MAX_NAMED: Final = 4
"""Number of runs up to which a table has a column for each, with the name as its header."""

INTERVALS: Final = "In parentheses: the 95% interval."
"""The note of a section with intervals."""

_OWN_KEYS: Final = ("run.", "resume", "trust")
"""Keys that say where a run is, not what it does."""


@dataclass(frozen=True)
class NamedRun:
    """A run and the name that the page gives it."""

    name: str
    record: RunRecord

    @property
    def best_weights(self) -> object:
        """The weights, raw or averaged, of its best score."""
        return (self.record.best or {}).get("weights", "raw")


def part_name(target: str) -> str:
    """Return the name of a part: its module, as the options are named."""
    names = target.split(".")
    return names[-2] if len(names) > 1 else target


def column_names(runs: Sequence[NamedRun]) -> list[str]:
    """Return a header for each run: its name, or for many runs its rank."""
    return [run.name for run in runs] if len(runs) <= MAX_NAMED else [f"#{rank}" for rank in range(1, len(runs) + 1)]


def curve_section(runs: Sequence[NamedRun]) -> Section:
    """Return the curves: a line for each run, or for the training data and both kinds of weights of a single run."""
    mark = None
    if len(runs) == 1 and (best := runs[0].record.best):
        mark = best["step"], f"best: step {best['step']}"
    heading = "Loss" if len(runs) == 1 else "Validation loss"
    figures = [_draw("loss", heading, "loss", _loss_lines(runs), mark)]
    for metric in _metrics(runs):
        lines = _validation_lines(runs, metric)
        figures.append(_draw(metric, f"Validation {words(metric)}", words(metric), lines, mark))
    if len(runs) > 1:
        lines = [_run_line(runs, number, "train", "loss") for number in range(len(runs))]
        figures.append(_draw("loss", "Training loss", "loss", lines, None))
    for key in _training_keys(runs):
        title, axis, factor = _TRAINING.get(key, (words(key), words(key), 1.0))
        lines = [_run_line(runs, number, "train", key, factor) for number in range(len(runs))]
        figures.append(_draw(key, title, axis, lines, None))
    legend = [Line(run.name, {}, number) for number, run in enumerate(runs)]
    return Section("Curves", lines=legend, figures=figures)


def _draw(key: str, title: str, axis: str, lines: Sequence[Line], mark: tuple[int, str] | None) -> Figure:
    values = [value for line in lines for value in line.points.values() if math.isfinite(value)]
    is_share = key not in _UNBOUNDED and all(0 <= value <= 1 for value in values)
    bounds = (0.0, 1.0) if is_share else (-math.inf, math.inf)
    svg = draw_lines(
        lines,
        axis,
        bounds=bounds,
        may_be_logarithmic=key in _FAR_APART,
        from_zero=key in _FROM_ZERO,
        mark=mark,
        is_titled=title.lower().endswith(axis.lower()),
    )
    # The lines of several runs have one legend for all charts.
    named = [line for line in lines if line.points] if len({line.series for line in lines}) <= 3 and mark else ()
    return Figure(title, svg, named)


def _loss_lines(runs: Sequence[NamedRun]) -> list[Line]:
    if len(runs) > 1:
        return _validation_lines(runs, "loss")
    training = runs[0].record.series("train", "loss")
    return [Line("training", training, 0, is_faint=True), *_validation_lines(runs, "loss")]


def _validation_lines(runs: Sequence[NamedRun], metric: str) -> list[Line]:
    if len(runs) > 1:
        numbers = range(len(runs))
        return [
            _run_line(
                *(runs, number, "eval", metric),
                split=runs[number].record.validation_sets[0],
                weights=runs[number].best_weights,
            )
            for number in numbers
        ]
    record = runs[0].record
    lines = []
    shown = [(split, weights) for split in record.validation_sets for weights in ("raw", "ema")]
    for series, (split, weights) in enumerate(shown, 1):
        points = record.series("eval", metric, split=split, weights=weights)
        name = split if weights == "raw" else f"{split}, averaged weights"
        lines.append(Line(name, points, series, has_dots=len(points) <= 60))
    return [line for line in lines if line.points]


def _run_line(
    runs: Sequence[NamedRun], number: int, event: str, key: str, factor: float = 1.0, **filters: object
) -> Line:
    points = runs[number].record.series(event, key, **filters)
    return Line(runs[number].name, {step: value * factor for step, value in points.items()}, number)


def _metrics(runs: Sequence[NamedRun]) -> list[str]:
    """Return the validation metrics, the monitored one first."""
    events = [event for run in runs for event in run.record.events if event["event"] == "eval"]
    names = _plotted(event for event in events if is_validation(event.get("split")))
    return monitored_first(names, monitor_of(runs))


def monitor_of(runs: Sequence[NamedRun]) -> object:
    """Return the monitored metric of the first run that has one."""
    return next((run.record.best["name"] for run in runs if run.record.best and "name" in run.record.best), None)


def _training_keys(runs: Sequence[NamedRun]) -> list[str]:
    names = _plotted(event for run in runs for event in run.record.events if event["event"] == "train")
    known = list(_TRAINING)
    return sorted(names, key=lambda name: known.index(name) if name in known else len(known))


def _plotted(events: Iterator[Document]) -> list[str]:
    names = dict.fromkeys(
        key
        for event in events
        for key, value in event.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    )
    return [name for name in names if name not in _NOT_PLOTTED]


def evaluation_section(runs: Sequence[NamedRun]) -> Section:
    """Return the scores of every evaluation that the runs stored."""
    rows = [(run.name, split, scores) for run in runs for split, scores in run.record.evaluations.items()]
    known = (key for _, _, scores in rows for key, value in scores.items() if _is_metric(key, value))
    metrics = monitored_first(known, monitor_of(runs))
    has_others = any("data" in scores for _, _, scores in rows)
    columns = ["run", "evaluation", *(["other data"] if has_others else []), "step", "weights", *map(words, metrics)]
    cells = [
        [
            name,
            shown_split(split, scores),
            *([scores.get("data")] if has_others else []),
            *map(scores.get, ("step", "weights")),
            *(with_interval(scores, key) for key in metrics),
        ]
        for name, split, scores in rows
    ]
    has_interval = any(interval_of(scores, key) for _, _, scores in rows for key in metrics)
    note = INTERVALS if has_interval else ""
    return Section("Evaluations", note, tables=[_without_run(runs, Table("Scores", columns, cells, is_stacked=True))])


def shown_split(stem: str, scores: Document) -> str:
    """Return the split of an evaluation, or the stem of its file if that also names other data."""
    split = scores.get("split")
    return str(split) if split is not None and file_stem(split) == stem else stem


def _is_metric(key: str, value: object) -> bool:
    return key not in ("step", "format") and isinstance(value, int | float) and not isinstance(value, bool)


def interval_of(scores: Document, metric: str) -> tuple[float, float] | None:
    """Return the 95% interval of a metric in an evaluation, if it is known."""
    intervals = scores.get("intervals")
    ends = intervals.get(metric) if isinstance(intervals, Mapping) else None
    if isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends):
        return ends[0], ends[1]
    return None


def with_interval(scores: Document, metric: str) -> object:
    """Return the value of a metric in an evaluation, with its 95% interval if that is known."""
    value, interval = scores.get(metric), interval_of(scores, metric)
    if interval is None or not isinstance(value, int | float):
        return value
    return f"{format_number(value)} ({' to '.join(map(format_number, interval))})"


def _without_run(runs: Sequence[NamedRun], table: Table) -> Table:
    """Return a table without its first column, the run, if there is only one."""
    if len(runs) > 1:
        return table
    return replace(table, columns=table.columns[1:], rows=[row[1:] for row in table.rows])


def data_section(runs: Sequence[NamedRun]) -> Section:
    """Return the sizes of the splits, their problems, and the warnings of the runs."""
    rows: list[tuple[str, object, Mapping[str, object]]] = []
    measures: dict[str, None] = {}
    for run in runs:
        start = next((event for event in run.record.events if event["event"] == "start"), {})
        data = start.get("data")
        for split, values in data.items() if isinstance(data, Mapping) else ():
            if isinstance(values, Mapping):
                rows.append((run.name, split, values))
                measures |= dict.fromkeys(key for key in values if key != "rows")
    cells = [
        [name, split, values.get("rows"), *(_percent(values.get(key)) for key in measures)]
        for name, split, values in rows
    ]
    table = Table("Splits", ["run", "split", "rows", *map(str, measures)], cells)
    names: dict[str, list[str]] = {}
    for run in runs:
        for line in _read_warnings(run.record.folder):
            names.setdefault(line, []).append(run.name)
    # Runs on the same data have the same warnings: each is shown once.
    warnings = [line if len(of) == len(runs) else f"{'; '.join(of)}: {line}" for line, of in names.items()]
    return Section("Data and warnings", warnings=warnings, tables=[_without_run(runs, table)])


def _percent(value: object) -> str | None:
    return f"{100 * value:.1f}%" if isinstance(value, int | float) else None


def _read_warnings(folder: Path) -> list[str]:
    lines: list[str] = []
    for file in (folder / LOG, *sorted((folder / RANK_LOGS).glob("rank-*.log"))):
        if file.is_file():  # a power cut may leave any bytes in a log
            with file.open("rb") as stream:
                lines += stream.read(_LARGEST_LOG).decode("utf-8", errors="replace").splitlines()
    return list(dict.fromkeys(line.split(": ", 1)[-1] for line in lines if " WARNING " in line or " ERROR " in line))


def artifact_section(runs: Sequence[NamedRun]) -> Section:
    """Return the proofs of the artifacts and their timings."""
    rows: list[list[object]] = []
    monitors: set[object] = set()
    timings: list[Table] = []
    notes: list[str] = []
    folders = [(run, folder) for run in runs for folder in export_folders(run.record.folder)]
    for run, folder in folders:
        manifest = read_export_manifest(folder) or {"artifacts": {}}
        monitor = manifest.get("monitor")
        for artifact, proof in manifest["artifacts"].items():
            path = f"{folder.name}/{proof.get('file')}"
            values = map(proof.get, ("largest_difference", "decision_agreement"))
            scores = [(each.get("metrics") or {}).get(monitor) for each in (proof, manifest)]
            size = format_bytes(proof["bytes"]) if "bytes" in proof else None
            rows.append([run.name, artifact, path, size, *values, *scores])
            monitors |= {monitor} - {None}
        timings.append(_timings(run.name if len(runs) > 1 else "", folder.name, manifest))
        measured = manifest.get("timings", {"rows": []})["rows"]
        if disturbed := sum(row.get("disturbed", False) for row in measured):
            notes.append(f"{folder.name}: {describe_disturbed(disturbed, len(measured))}")
    metric = words(str(monitors.pop())) if len(monitors) == 1 else "metric"
    columns = [
        *("run", "artifact", "file", "size"),
        *("largest difference", "equal answers", metric, f"{metric} in PyTorch"),
    ]
    proofs = _without_run(runs, Table("Proof against PyTorch", columns, rows, is_stacked=True))
    return Section("Artifacts", warnings=notes, tables=[proofs, *timings])


def _timings(run: str, folder: str, manifest: Document) -> Table:
    document = manifest.get("timings", {"rows": []})
    rows = [row for row in document["rows"] if not row.get("disturbed")]
    sizes, formats = (
        list(dict.fromkeys(key for row in rows for key in row[part])) for part in ("sizes", "milliseconds")
    )
    cells = [[*map(row["sizes"].get, sizes), *map(row["milliseconds"].get, formats)] for row in rows]
    title = f"Median latency of a call in milliseconds, {folder}, threads: {document.get('threads')}"
    return Table(f"{run}: {title}" if run else title, [*sizes, *formats], cells)


def environment_section(runs: Sequence[NamedRun]) -> Section:
    """Return what the runs ran on."""
    rows = []
    for run in runs:
        for event in run.record.events:
            if event["event"] in ("start", "resume"):
                versions = event.get("versions")
                software = versions.items() if isinstance(versions, Mapping) else ()
                listed = ", ".join(f"{name} {version}" for name, version in software)
                config = run.record.config
                devices, device = str(config.get("devices")), config.get("device")
                devices += "" if device == "auto" else f" x {device}"
                values = [event.get("processor"), event.get("threads"), devices, config.get("precision"), listed]
                rows.append([run.name, f"{event['event']} at step {event['step']}", *values])
    columns = ["run", "process", "processor", "threads", "devices", "precision", "versions"]
    return Section("Environment", tables=[_without_run(runs, Table("Processes", columns, rows, is_stacked=True))])


def config_section(runs: Sequence[NamedRun]) -> Section:
    """Return what differs, from the defaults or between the runs, and the rest folded."""
    if len(runs) > 1:
        return _compared_configs(runs)
    config = runs[0].record.config
    values, defaults = dict(flatten(config)), default_values(config)
    changed, keys = [], [key for key, value in values.items() if _is_changed(key, value, defaults)]
    for key in keys:
        default = _show(defaults[key]) if defaults.get(key, "???") != "???" else "(none)"
        if key.endswith("._target_"):
            group = key.removesuffix("._target_")
            changed.append([group, part_name(str(values[key])), part_name(default)])
        else:
            changed.append([key, _show(masked_config(values[key], key)), default])
    rest = [[key, _show(masked_config(value, key))] for key, value in values.items() if key not in keys]
    differing = Table("What differs from the defaults", ["key", "value", "default"], changed)
    return Section(
        "Config", tables=[differing, Table(counted(len(rest), "other key"), ["key", "value"], rest, is_folded=True)]
    )


def _is_changed(key: str, value: object, defaults: Mapping[str, object]) -> bool:
    is_own = key.startswith(_OWN_KEYS) or key.rpartition(".")[2] in ("_partial_", "_convert_")
    default = defaults.get(key)
    # A default that refers to other keys is null unless they are set.
    is_derived = isinstance(default, str) and default.startswith("${") and value is None
    return not is_own and not is_derived and (key not in defaults or default != value)


def default_values(config: Document) -> dict[str, object]:
    """Return the defaults of a stored config's keys; of a group, the defaults of its option."""
    groups = Groups((own_folder(),))
    chosen = [item for item in groups.defaults("train") if isinstance(item, dict)]
    listed = {name: option for item in chosen for name, option in item.items()}
    values: dict[str, object] = dict(flatten(schema.defaults(TrainJob)))
    for group, part in config.items():
        if not isinstance(part, Mapping) or "_target_" not in part:
            continue
        option = groups.option_of(group, part["_target_"])
        values |= flatten({group: groups.content(group, option)}) if option else {}
        usual = groups.content(group, str(listed.get(group))).get("_target_")
        values[f"{group}._target_"] = usual
    return values


def _compared_configs(runs: Sequence[NamedRun]) -> Section:
    configs = [run.record.config for run in runs]
    differing = set(differing_keys(configs))
    keys = list(dict.fromkeys(key for config in configs for key, _ in flatten(config)))
    columns = ["key", *column_names(runs)]

    compared = [[key, *(shown_value(config, key) for config in configs)] for key in keys if key in differing]
    equal = [key for key in keys if key not in differing and not key.startswith(_OWN_KEYS)]
    tables = [
        Table("What the runs differ in", columns, compared),
        Table(
            f"{counted(len(equal), 'key')} equal in all runs",
            ["key", "value"],
            [[key, shown_value(configs[0], key)] for key in equal],
            is_folded=True,
        ),
    ]
    return Section("Config", tables=tables)


def differing_keys(configs: Sequence[Document]) -> list[str]:
    """Return the keys whose values differ between runs, without those that only say where a run is."""
    flat = [dict(flatten(config)) for config in configs]
    keys = dict.fromkeys(key for values in flat for key in values if not key.startswith(_OWN_KEYS))
    return [key for key in keys if any(values.get(key) != flat[0].get(key) for values in flat)]


def shown_value(config: Document, key: str) -> str:
    """Return the value of a key without secrets."""
    return _show(masked_config(dict(flatten(config)).get(key, ""), key))


def _show(value: Any) -> str:
    return value if isinstance(value, str) else to_json(value, ensure_ascii=False, default=str)
