"""`trainer report`: one offline HTML page about a run, or about several runs side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trainer.atomic_io import refuse_to_replace, write_text
from trainer.commands.run_folders import RunRecord, flatten, read_run
from trainer.config.jobs import ReportJob
from trainer.display import escape_controls, masked_config
from trainer.documents import read_export_manifest
from trainer.errors import CheckpointError, ConfigError, TrainerError
from trainer.layout import LOG, REPORT, Document, export_folders
from trainer.report.page import Section, Series, is_own_page, render_page

_NOT_PLOTTED = ("event", "step", "epoch", "split", "weights", "best_step")

_NamedRuns = Sequence[tuple[str, RunRecord]]


def run(job: ReportJob, config: Document) -> None:
    """Write `report.html` into the run folder or to `output`, and print its path.

    Args:
        job: The checked config.
        config: The same as plain data; unused.

    Raises:
        CheckpointError: There is no such run.
        ConfigError: The file cannot be written, or is from elsewhere.
    """
    if job.output is not None:
        refuse_to_replace("output", Path(job.output), force=job.force, is_own=is_own_page)
    records = [read_run(job.run), *(read_run(path, "beside") for path in job.beside)]
    file = records[0].folder / REPORT if job.output is None else Path(job.output)
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
    names = _short_names(records)
    write_text(file, render_page(" and ".join(names), list(make_sections(records, names))), error_type)


def _short_names(records: Sequence[RunRecord]) -> list[str]:
    """Return the run folders without their common parent."""
    paths = [str(record.folder.absolute()) for record in records]
    if len(paths) == 1:
        return [records[0].folder.name]
    common = os.path.commonpath(paths)
    return [
        os.path.relpath(path, common) if path != common else record.folder.name
        for path, record in zip(paths, records, strict=True)
    ]


def make_sections(records: Sequence[RunRecord], names: Sequence[str]) -> Iterator[Section]:
    """Yield the sections of the page, each run under its name."""
    runs = list(zip(names, records, strict=True))
    yield Section(
        "runs",
        ["run", "steps", "epochs", "last event", "best score", "metric", "weights", "best step"],
        [_summarize(*pair) for pair in runs],
    )
    yield Section("training", figures=_collect_figures(runs, "train", {}))
    yield Section("validation", figures=_collect_figures(runs, "eval", {"split": "validation"}))
    yield _evaluations(runs)
    yield _artifacts(runs)
    warnings = [f"{name}: {line}" for name, record in runs for line in _read_warnings(record.folder)]
    yield Section("warnings", text="\n".join(warnings))
    yield _configs(runs)


def _summarize(name: str, record: RunRecord) -> list[object]:
    last = record.events[-1] if record.events else {}
    best = record.best or {}
    score = [best.get(key) for key in ("value", "name", "weights", "step")]
    return [name, last.get("step"), last.get("epoch"), last.get("event"), *score]


def _collect_figures(runs: _NamedRuns, event: str, filters: Document) -> Mapping[str, Series]:
    """Return the curves of every number of an event: a line for each run, and for raw and averaged weights."""
    figures: dict[str, dict[str, dict[int, float]]] = {}
    for name, record in runs:
        events = [each for each in record.events if each["event"] == event and filters.items() <= each.items()]
        values = dict.fromkeys(key for each in events for key in each if _is_plotted(key, each[key]))
        for weights in dict.fromkeys(each.get("weights") for each in events):
            line = " ".join(filter(None, (name if len(runs) > 1 else "", weights))) or name
            selected = filters | ({"weights": weights} if weights else {})
            for value in values:
                figures.setdefault(value, {})[line] = record.series(event, value, **selected)
    return figures


def _is_plotted(key: str, value: object) -> bool:
    return key not in _NOT_PLOTTED and isinstance(value, int | float) and not isinstance(value, bool)


def _evaluations(runs: _NamedRuns) -> Section:
    rows = [(name, values) for name, record in runs for values in record.evaluations.values()]
    columns = list(dict.fromkeys(key for _, values in rows for key in values))
    return Section("evaluations", ["run", *columns], [[name, *map(values.get, columns)] for name, values in rows])


def _artifacts(runs: _NamedRuns) -> Section:
    columns = [
        *("run", "artifact", "file", "bytes"),
        *("max difference", "decision agreement", "metric", "metric (PyTorch)"),
    ]
    rows = []
    for name, folder in ((name, folder) for name, record in runs for folder in export_folders(record.folder)):
        manifest = read_export_manifest(folder) or {"artifacts": {}}
        monitor = manifest.get("monitor")
        for artifact, proof in manifest["artifacts"].items():
            path = f"{folder.name}/{proof.get('file')}"
            values = map(proof.get, ("bytes", "largest_difference", "decision_agreement"))
            scores = [(each.get("metrics") or {}).get(monitor) for each in (proof, manifest)]
            rows.append([name, artifact, path, *values, *scores])
    return Section("artifacts", columns, rows)


def _read_warnings(folder: Path) -> list[str]:
    file = folder / LOG
    # A power cut may leave any bytes in a log.
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return list(dict.fromkeys(line.split(": ", 1)[-1] for line in lines if " WARNING " in line or " ERROR " in line))


def _configs(runs: _NamedRuns) -> Section:
    """Return a table of every key; keys whose values differ come first and are highlighted."""
    configs = [dict(flatten(record.config)) for _, record in runs]
    keys = list(dict.fromkeys(key for config in configs for key in config))
    differing = {key for key in keys if any(config.get(key) != configs[0].get(key) for config in configs)}
    rows = [
        [key, *(_format_value(config, key) for config in configs)]
        for key in sorted(keys, key=lambda key: key not in differing)
    ]
    return Section("config", ["key", *(name for name, _ in runs)], rows, highlighted=frozenset(differing))


def _format_value(config: Document, key: str) -> str:
    value = masked_config(config.get(key, ""), key)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
