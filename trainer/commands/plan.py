"""`trainer plan`: everything that can be known of a training job without running it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from trainer.commands.run_folders import check_free
from trainer.commands.run_log import describe_draws
from trainer.config.jobs import PlanJob, TrainJob
from trainer.config.schema import keys
from trainer.config.stored import config_text
from trainer.display import displayable
from trainer.errors import ConfigError, format_error
from trainer.layout import (
    CHECKPOINTS,
    CONFIG,
    EVALUATIONS,
    EXPORT,
    LOG,
    METRICS,
    MODEL,
    RUNS,
    TENSORBOARD,
    Document,
    expand_home,
)
from trainer.progress import phase
from trainer.report.console import format_bytes, format_number, open_console, print_indented, print_table
from trainer.report.screen import phases_shown
from trainer.shapes import to_json

logger = logging.getLogger(__name__)

_BARS = "▁▂▃▄▅▆▇█"
_SHOWN_POINTS = 6


def run(job: PlanJob, config: Document) -> None:
    """Print the plan of a job. Creates no run folder and writes nothing but the encoding cache.

    Raises:
        ConfigError: The job resumes another run.
        CheckpointError: The run could not use its folder.
    """
    if job.resume not in (None, "auto"):
        raise ConfigError(
            format_error("resume", "plan cannot start from a checkpoint", "Leave it out", value=job.resume)
        )
    if job.run.dir is not None:
        check_free("run.dir", Path(expand_home(job.run.dir)))
    text = config_text({key: config[key] for key in keys(TrainJob)})
    console = open_console("auto")
    with phases_shown(console):
        with phase("loading PyTorch"):
            from trainer.builders.dry_run import dry_run
        document = dry_run(job, text, trial=job.trial, depth=job.depth) | {"files": _list_files(job)}
    _warn_of_device(job.device)
    _warn_of_memory(document, has_max_length="max_length" in job.task)
    if job.json:
        print(displayable(to_json(document, indent=1, ensure_ascii=False)))
        return
    for title, columns, rows in _tables(document):
        print_table(console, title, columns, rows)
        console.out("", highlight=False)
    _print_schedule(console, document["schedule"])


def _warn_of_device(name: str) -> None:
    """Warn if training would fail here: a plan runs on the CPU, so that it can be made on any machine."""
    from trainer.builders.device import build_device

    try:
        build_device(name)
    except ConfigError as error:
        logger.warning("%s. The plan assumes that the machine of the run has it.", error.messages[0].removesuffix("."))


def _warn_of_memory(document: Document, *, has_max_length: bool) -> None:
    needed, available = document["memory"]["total"], document["memory_available"]
    if needed is None or available is None or needed <= available:
        return
    from trainer.builders.memory import smaller_share

    remedies = [
        smaller_share(document["devices"]["count"], document["devices"]["shards"]),
        "raise train.accumulate" if document["steps"]["token_budget"] is None else "lower loader.tokens",
        *["lower task.max_length"] * has_max_length,
    ]
    logger.warning(
        "memory: a step needs %s on each device, which has %s. %s, or %s",
        format_bytes(needed),
        format_bytes(available),
        ", ".join(remedies[:-1]),
        remedies[-1],
    )


def _list_files(job: PlanJob) -> dict[str, str]:
    """Return the files that the run will write: path -> contents."""
    name = f"_{job.run.name}" if job.run.name else ""
    fixed = RUNS / str(job.run.name) if job.resume == "auto" else RUNS / f"<date>_<time>{name}"
    folder = fixed if job.run.dir is None else Path(job.run.dir)
    formats = job.export.get("formats") or []
    files = {
        CONFIG: "resolved config",
        METRICS: "events, one per line",
        LOG: "log messages",
        f"{TENSORBOARD}/": "event files" if job.logger.tensorboard else "",
        f"{CHECKPOINTS}/step-<N>/": "weights, averaged weights, optimizer, position; see the keys of checkpoint",
        f"{EVALUATIONS}/": "loss and metrics of the best weights",
        f"{MODEL}/": "best weights",
        f"{EXPORT}/": f"proved artifacts: {', '.join(formats)}" if formats else "",
    }
    return {f"{folder}/{path}": contents for path, contents in files.items() if contents}


def _tables(document: Document) -> Iterator[tuple[str, Sequence[str], Sequence[Sequence[object]]]]:
    yield "data", *_data(document["data"])
    if tokens := document["data"].get("tokens"):
        yield "tokens per epoch and per training sample", *_tokens(tokens)
    yield "steps", ("quantity", "value"), _steps(document["steps"])
    if document["devices"]["count"] > 1:
        yield "devices", ("quantity", "value"), _devices(document["devices"])
    yield "model", ("module", "type", "output", "parameters", "trainable"), _modules(document["model"])
    groups = [[group["lr"], group["weight_decay"], group["parameters"]] for group in document["optimizer"]["groups"]]
    yield f"optimizer: {document['optimizer']['optimizer']}", ("lr", "weight_decay", "parameters"), groups
    place = " on each device" if document["devices"]["count"] > 1 else ""
    yield f"memory of one step{place}, without the workspaces of kernels", ("use", "size"), _memory(document)
    yield "files", ("path", "contents"), [[path, contents] for path, contents in document["files"].items()]


def _data(data: Document) -> tuple[list[str], list[list[object]]]:
    names = list(dict.fromkeys(name for values in data["splits"].values() for name in values))
    rows = [
        [split, *(_format_share(name, values.get(name)) for name in names)] for split, values in data["splits"].items()
    ]
    return ["split", *names], rows


def _tokens(tokens: Document) -> tuple[list[str], list[list[object]]]:
    *names, share = tokens
    return [*names, "padding"], [[*(tokens[name] for name in names), _format_share(share, tokens[share])]]


def _format_share(name: str, value: float | str | None) -> float | str | None:
    return value if name == "rows" or value is None or isinstance(value, str) else f"{100 * value:.1f}%"


def _steps(step: Document) -> list[list[object]]:
    every, times = step["every"], step["times"]
    at_most = "" if step["accumulate"] * step["micro_batch"] == step["batch_size"] else "at most "
    division = f"{step['accumulate']} x {at_most}{step['micro_batch']}"
    if budget := step["token_budget"]:
        division = f"{_format_range(budget['micro_batches'])} micro-batches of {budget['tokens']} tokens"
    return [
        ["step", f"{step['batch_size']} samples = {division}"],
        *([["passes", _format_passes(step["passes"])]] if step["passes"]["count"] > 1 else []),
        ["epoch", f"{step['steps_per_epoch']} steps, the last with {step['last_batch_of_epoch']} samples"],
        *([["draws", describe_draws(step["draws"])]] if step["draws"] else []),
        ["run", f"{step['total_steps']} steps = {step['epochs']:g} epochs, {step['samples']} samples"],
        *([["time", f"each start ends after {step['max_time']}, with a checkpoint"]] if step["max_time"] else []),
        ["monitor", f"{step['monitor']['metric']} on {step['monitor']['split']}"],
        *([name, f"{_format_interval(every[name])}, {_format_times(times[name])}"] for name in every),
    ]


def _format_passes(passes: Document) -> str:
    start = f" after step {passes['start']}" if passes["start"] else ""
    return f"{passes['count']} forward and backward passes a step{start}"


def _devices(devices: Document) -> list[list[object]]:
    count, shards, copies = (devices[name] for name in ("count", "shards", "copies"))
    smallest, largest = devices["piece"]
    samples = {name: _format_range(values) for name, values in devices["samples"].items()}
    idle = devices["samples"]["step"].count(0)
    stored = "complete on each device" if shards == 1 else f"{copies} x {shards} shards"
    rows: list[list[object]] = [
        ["weights", stored],
        ["micro-batch", f"divided among {count} devices: {_format_range([smallest, largest])} samples on each"],
        ["step", f"{samples['step']} samples on each device, {_format_range(devices['micro_batches'])} micro-batches"],
        ["last step of an epoch", f"{samples['last_step_of_epoch']} samples on each device"],
    ]
    if idle:
        rows.append(["idle", f"{idle} devices never have a sample: raise train.batch_size"])
    return rows


def _format_range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _format_interval(steps: int) -> str:
    return "every step" if steps == 1 else f"every {steps} steps"


def _format_times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _modules(model: Document) -> list[list[object]]:
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


def _memory(document: Document) -> list[list[str]]:
    rows = [[name, format_bytes(value)] for name, value in document["memory"].items()]
    checkpoint = document["checkpoint"]
    return [*rows, ["checkpoint", f"{format_bytes(checkpoint['bytes'])}, at most {checkpoint['kept']} kept"]]


def _print_schedule(console: Console, schedule: Document) -> None:
    points = schedule["points"]
    base = schedule["lr"]
    note = " (scores may change it)" if schedule["follows_scores"] else ""
    shown = base if base == "auto" else format_number(base)
    print_indented(console, "learning rate: ", f"{schedule['schedule']}, base {shown}{note}")
    console.out(f"  {sparkline([point['factor'] for point in points])}", highlight=False)
    for position in sorted({round(i * (len(points) - 1) / (_SHOWN_POINTS - 1)) for i in range(_SHOWN_POINTS)}):
        point = points[position]
        rate = f"{point['factor']:.4f} x base" if point["lr"] is None else f"{point['lr']:.3e}"
        console.out(f"  step {point['step']:>8}  {rate}", highlight=False)


def sparkline(values: Sequence[float]) -> str:
    """Return one character per value, from 0 to the largest."""
    top = max(values, default=0.0)
    last = len(_BARS) - 1
    return "".join(_BARS[round(last * max(0.0, value) / top)] if top > 0 else _BARS[0] for value in values)
