"""Values that have the right type and still cannot be meant: out of range, or not beside the others."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.config import bounds, entries, part_rules, source_rules
from trainer.durations import Duration, parse
from trainer.errors import format_error

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_CHECKPOINT = re.compile(r"best|last|step-\d+")
_START = re.compile(r"step-\d+")
_NAMES = ("run.dir", "model.weights", "model.path", "task.tokenizer", "loss.teacher", "checkpoint.monitor")
_SPLITS = ("train", "validation", "test")


def faults(config: Mapping[str, Any]) -> list[str]:
    """What is out of range or cannot go together; keys that are absent or of the wrong type are passed over."""
    flat = {f"{top}.{key}": item for top, value in config.items() for key, item in _items(value)} | dict(config)
    return [
        *bounds.faults(config),
        *_syntax(flat),
        *_asked(flat),
        *_cadences(flat),
        *_micro_batches(flat),
        *_warmup(flat),
        *part_rules.faults(config),
        *entries.faults(config),
        *source_rules.faults(config),
    ]


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _syntax(flat: Mapping[str, Any]) -> Iterator[str]:
    for key in _NAMES:
        if flat.get(key) == "":
            yield format_error(key, "must not be empty", value="")
    device = flat.get("device")
    if isinstance(device, str) and not _DEVICE.fullmatch(device):
        yield format_error("device", "must be auto, cpu, cuda, cuda:N or mps", value=device)
    checkpoint = flat.get("checkpoint")
    if isinstance(checkpoint, str) and not _CHECKPOINT.fullmatch(checkpoint):
        yield format_error("checkpoint", "must be best, last or step-N", value=checkpoint)
    start = flat.get("start")
    if isinstance(start, str) and not _START.fullmatch(start):
        yield format_error("start", "must be step-N", value=start)
    split = flat.get("split")
    if isinstance(split, str) and split not in _SPLITS:
        yield format_error("split", f"must be one of {', '.join(_SPLITS)}", value=split)
    name = flat.get("run.name")
    if isinstance(name, str) and (not name or "/" in name or "\\" in name or name in (".", "..")):
        yield format_error("run.name", "must be the name of a folder", "run.dir takes a path", value=name)
    if flat.get("resume") == "auto" and "run.name" in flat and flat["run.name"] is None and not flat.get("run.dir"):
        yield format_error("resume", "auto needs a run that has a fixed place", "Give run.name", value="auto")


def _asked(flat: Mapping[str, Any]) -> Iterator[str]:
    """What goes together in a prediction."""
    if "neighbours" in flat and "corpus" in flat and (flat["neighbours"] is None) != (flat["corpus"] is None):
        lacking, given = ("corpus", "neighbours") if flat["corpus"] is None else ("neighbours", "corpus")
        yield format_error(lacking, f"must be given with {given}", "neighbours=5 corpus=my.txt", value=None)
    if flat.get("backend") != "onnx":
        return
    if flat.get("precision") not in (None, "fp32"):
        yield format_error("precision", "is of PyTorch; an artifact has its own", "Use fp32", value=flat["precision"])
    if flat.get("device") not in (None, "auto", "cpu"):
        yield format_error("device", "is of PyTorch; artifacts run on the CPU", "Use auto or cpu", value=flat["device"])


def _cadences(flat: Mapping[str, Any]) -> Iterator[str]:
    length = parse(flat.get("train.duration"))
    if length is not None and length.unit == "%":
        problem = "a percentage has nothing to refer to: this is the length of the run"
        yield format_error("train.duration", problem, "Use st or ep", value=flat["train.duration"])
    lengths = ("duration", "log_every", "eval_every", "patience")
    for key in (*(f"train.{name}" for name in lengths), "checkpoint.every", "scheduler.every"):
        duration = parse(flat.get(key))
        if duration is not None and not duration.amount:
            yield format_error(key, "must not be zero", value=flat[key])


def _micro_batches(flat: Mapping[str, Any]) -> Iterator[str]:
    batch_size, accumulate = flat.get("train.batch_size"), flat.get("train.accumulate")
    if isinstance(batch_size, int) and isinstance(accumulate, int) and 1 <= batch_size < accumulate:
        problem = f"must not be larger than train.batch_size ({batch_size}), which it divides into micro-batches"
        yield format_error("train.accumulate", problem, value=accumulate)


def _warmup(flat: Mapping[str, Any]) -> Iterator[str]:
    length = parse(flat.get("train.duration"))
    phases = {key: parse(flat.get(f"scheduler.{key}")) for key in ("warmup", "decay")}
    given = {key: phase for key, phase in phases.items() if phase is not None and _comparable(phase, length)}
    for key, phase in given.items():
        if key == "warmup" and flat.get("scheduler.three_phase") is True and _part_of(phase, length) > 0.5:
            problem = "must be half of the run at most, for scheduler.three_phase"
            yield format_error("scheduler.warmup", problem, value=flat["scheduler.warmup"])
        elif _part_of(phase, length) > 1:
            problem = f"must not be longer than the run (train.duration is {flat['train.duration']})"
            yield format_error(f"scheduler.{key}", problem, value=flat[f"scheduler.{key}"])
    parts = [_part_of(phase, length) for phase in given.values()]
    if len(parts) == 2 and sum(parts) > 1 >= max(parts):
        yield format_error("scheduler", "warmup and decay together must not be longer than the run", value=_shown(flat))


def _shown(flat: Mapping[str, Any]) -> str:
    return f"{flat['scheduler.warmup']} and {flat['scheduler.decay']}"


def _comparable(phase: Duration, length: Duration | None) -> bool:
    return phase.unit == "%" or (length is not None and length.unit == phase.unit and length.amount > 0)


def _part_of(phase: Duration, length: Duration | None) -> float:
    if phase.unit == "%":
        return float(phase.amount) / 100
    assert length is not None
    return float(phase.amount / length.amount)
