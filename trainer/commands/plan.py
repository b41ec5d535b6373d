"""`trainer plan`: all that can be known of a training job without running it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from trainer.config.jobs import PlanJob, TrainJob
from trainer.config.schema import keys
from trainer.config.stored import config_text
from trainer.errors import ConfigError, format_error
from trainer.layout import CHECKPOINTS, CONFIG, EVALUATIONS, EXPORT, LOG, METRICS, MODEL, RUNS, TENSORBOARD
from trainer.report.console import number, open_console, table

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN_POINTS = 6


def run(job: PlanJob, config: dict[str, Any]) -> None:
    """Shows the plan of a job; no run folder is made, and nothing is written but the encoding cache.

    Args:
        job: The checked config.
        config: The same as plain data.

    Raises:
        ConfigError: It is to go on with another run.
    """
    if job.resume not in (None, "auto"):
        raise ConfigError(
            format_error("resume", "a plan is that of a run from its start", "Leave it out", value=job.resume)
        )
    from trainer.builders.dry_run import dry_run

    text = config_text({key: config[key] for key in keys(TrainJob)})
    document = dry_run(job, text, trial=job.trial, depth=job.depth) | {"files": _files(job)}
    if job.json:
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return
    console = open_console("auto")
    for title, columns, rows in _tables(document):
        table(console, title, columns, rows)
        console.out("", highlight=False)
    _curve(console, document["schedule"])


def _files(job: PlanJob) -> dict[str, str]:
    """What the run will write: path to what it holds."""
    name = f"_{job.run.name}" if job.run.name else ""
    fixed = RUNS / str(job.run.name) if job.resume == "auto" else RUNS / f"<date>_<time>{name}"
    folder = fixed if job.run.dir is None else Path(job.run.dir)
    formats = job.export.get("formats") or []
    found = {
        CONFIG: "the config, resolved",
        METRICS: "one event a line",
        LOG: "what is told while it runs",
        f"{TENSORBOARD}/": "event files" if job.logger.tensorboard else "",
        f"{CHECKPOINTS}/step-<N>/": "weights, averages, optimizer, position; see checkpoint",
        f"{EVALUATIONS}/": "loss and metrics of the best weights",
        f"{MODEL}/": "the best weights",
        f"{EXPORT}/": f"proved artifacts: {', '.join(formats)}" if formats else "",
    }
    return {f"{folder}/{path}": holds for path, holds in found.items() if holds}


def _tables(document: Mapping[str, Any]) -> Iterator[tuple[str, Sequence[str], list[list[Any]]]]:
    yield "data", *_data(document["data"])
    if tokens := document["data"].get("tokens"):
        yield "tokens of an epoch, and of a training sample", *_tokens(tokens)
    yield "steps", ("what", "is"), _steps(document["steps"])
    yield "model", ("module", "kind", "output", "parameters", "trainable"), _modules(document["model"])
    groups = [[group["lr"], group["weight_decay"], group["parameters"]] for group in document["optimizer"]["groups"]]
    yield f"optimizer: {document['optimizer']['optimizer']}", ("lr", "weight_decay", "parameters"), groups
    yield "memory of a step, without what the device's kernels take", ("what", "bytes"), _memory(document)
    yield "files", ("path", "holds"), [[path, holds] for path, holds in document["files"].items()]


def _data(data: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    names = list(dict.fromkeys(name for found in data["splits"].values() for name in found))
    rows = [[split, *(_share(name, found.get(name)) for name in names)] for split, found in data["splits"].items()]
    return ["split", *names], rows


def _tokens(tokens: Mapping[str, Any]) -> tuple[list[str], list[list[Any]]]:
    *names, share = tokens
    return [*names, "empty positions"], [[*(tokens[name] for name in names), _share(share, tokens[share])]]


def _share(name: str, value: Any) -> Any:
    return value if name == "rows" or value is None else f"{100 * value:.1f} %"


def _steps(document: Mapping[str, Any]) -> list[list[Any]]:
    step = document
    every, times = step["every"], step["times"]
    exactly = "" if step["accumulate"] * step["micro_batch"] == step["batch_size"] else "at most "
    return [
        ["a step", f"{step['batch_size']} samples = {step['accumulate']} x {exactly}{step['micro_batch']}"],
        ["an epoch", f"{step['steps_per_epoch']} steps, the last of {step['last_batch_of_epoch']} samples"],
        ["the run", f"{step['total_steps']} steps = {step['epochs']:g} epochs, {step['samples']} samples"],
        *([name, f"every {every[name]} steps, {times[name]} times"] for name in every),
    ]


def _modules(model: Mapping[str, Any]) -> list[list[Any]]:
    rows = [
        [
            "  " * row["name"].count(".") + (row["name"].rpartition(".")[2] or "(itself)"),
            row["kind"],
            " x ".join(map(str, row["output"] or ())),
            row["parameters"],
            row["trainable"],
        ]
        for row in model["modules"]
    ]
    return [*rows, ["total", "", "", model["parameters"], model["trainable"]]]


def _memory(document: Mapping[str, Any]) -> list[list[str]]:
    rows = [[name, _size(value)] for name, value in document["memory"].items()]
    checkpoint = document["checkpoint"]
    kept = f"{_size(checkpoint['bytes'])}, at most {checkpoint['kept']} kept"
    return [*rows, ["a checkpoint", kept]]


def _size(count: int | None) -> str:
    """Bytes for a person."""
    if count is None:
        return "? (trial=false)"
    value, unit = float(count), 0
    while value >= 1000 and unit < 3:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.1f} {('kB', 'MB', 'GB')[unit - 1]}"


def _curve(console: Console, schedule: Mapping[str, Any]) -> None:
    points = schedule["points"]
    base = schedule["lr"]
    note = ", as long as no score changes it" if schedule["follows_scores"] else ""
    shown = base if base == "auto" else number(base)
    console.out(f"learning rate: {schedule['schedule']}, base {shown}{note}", highlight=False)
    console.out(f"  {sparkline([point['factor'] for point in points])}", highlight=False)
    for position in sorted({round(i * (len(points) - 1) / (_SHOWN_POINTS - 1)) for i in range(_SHOWN_POINTS)}):
        point = points[position]
        rate = f"{point['factor']:.4f} of it" if point["lr"] is None else f"{point['lr']:.3e}"
        console.out(f"  step {point['step']:>8}  {rate}", highlight=False)


def sparkline(values: Sequence[float]) -> str:
    """A character for each value, from 0 to the largest."""
    top = max(values, default=0.0)
    last = len(_BARS) - 1
    return "".join(_BARS[round(last * max(0.0, value) / top)] if top > 0 else _BARS[0] for value in values)
