"""Ranges and combinations: values that have the right type and still cannot be meant."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeGuard

from trainer.config.duration import Duration, parse
from trainer.errors import explain

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_CHECKPOINT = re.compile(r"best|last|step-\d+")
_START = re.compile(r"step-\d+")
_SPLITS = ("train", "validation", "test")

_Bound = tuple[Callable[[float], bool], str]

_POSITIVE: _Bound = (lambda value: 0 < value < math.inf, "must be above 0")
_NOT_NEGATIVE: _Bound = (lambda value: 0 <= value < math.inf, "must not be negative")
_AT_LEAST_1: _Bound = (lambda value: value >= 1, "must be at least 1")
_SHARE: _Bound = (lambda value: 0 <= value < 1, "must be at least 0 and below 1")
_SEED: _Bound = (lambda value: 0 <= value < 1 << 64, "must be at least 0 and below 2 ** 64")


def _is_amount(value: float) -> bool:
    """An integer is a count: 1 is one, and 1.0 would be all."""
    return value >= 0 if isinstance(value, int) else 0 <= value < 1


BOUNDS: dict[str, _Bound] = {
    "seed": _SEED,
    "train.batch_size": _AT_LEAST_1,
    "train.accumulate": _AT_LEAST_1,
    "train.max_grad_norm": _POSITIVE,
    "loader.workers": _NOT_NEGATIVE,
    "loader.prefetch": _AT_LEAST_1,
    "loader.eval_batch_size": _AT_LEAST_1,
    "loader.limit": _AT_LEAST_1,
    "checkpoint.keep": (lambda value: value >= 2, "must be at least 2: one may be damaged"),
    "ema.decay": _SHARE,
    "optimizer.lr": _POSITIVE,
    "optimizer.weight_decay": _NOT_NEGATIVE,
    "task.max_length": (lambda value: value >= 3, "must be at least 3, two of them special tokens"),
    "model.dropout": _SHARE,
    "loss.label_smoothing": _SHARE,
    "loss.weight": _NOT_NEGATIVE,
    "loss.pos_weight": _NOT_NEGATIVE,
    "loss.gamma": _NOT_NEGATIVE,
    "loss.alpha": (lambda value: 0 <= value <= 1, "must be between 0 and 1"),
    "loss.smooth": _POSITIVE,
    "loss.temperature": _POSITIVE,
    "loss.delta": _POSITIVE,
    "loss.correlation": _NOT_NEGATIVE,
    "loss.in_features": _AT_LEAST_1,
    "optimizer.eps": _POSITIVE,
    "optimizer.momentum": _SHARE,
    "optimizer.betas": _SHARE,
    "optimizer.layer_decay": (lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    "scheduler.num_cycles": _POSITIVE,
    "scheduler.min_factor": (lambda value: 0 <= value <= 1, "must be between 0 and 1"),
    "model.noisy_tune": _NOT_NEGATIVE,
    "prune.amount": (_is_amount, "must be a share, at least 0 and below 1, or a count, an integer"),
    "prune.n": (lambda value: value > 0, "must be above 0"),
    "export.tolerance": _POSITIVE,
    "export.metric_budget": _NOT_NEGATIVE,
    "export.calibration": _AT_LEAST_1,
    "depth": _NOT_NEGATIVE,
    "steps": _AT_LEAST_1,
    "explain": _AT_LEAST_1,
    "top": _AT_LEAST_1,
    "neighbours": _AT_LEAST_1,
    "decode.max_new_tokens": _AT_LEAST_1,
    "decode.min_new_tokens": _NOT_NEGATIVE,
    "decode.num_beams": _AT_LEAST_1,
    "decode.num_return": _AT_LEAST_1,
    "decode.temperature": _POSITIVE,
    "decode.top_k": _NOT_NEGATIVE,
    "decode.top_p": (lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    "decode.repetition_penalty": _POSITIVE,
    "decode.no_repeat_ngram": _NOT_NEGATIVE,
    "decode.seed": _SEED,
}


def faults(config: Mapping[str, Any]) -> list[str]:
    """What is out of range or cannot go together; keys that are absent or of the wrong type are passed over."""
    flat = {f"{top}.{key}": item for top, value in config.items() for key, item in _items(value)} | dict(config)
    found: list[str] = []
    for key, (holds, problem) in BOUNDS.items():
        value = flat.get(key)
        numbers = [item for item in (value if isinstance(value, list) else [value]) if _is_number(item)]
        if not all(map(holds, numbers)):
            found.append(explain(key, problem, value=value))
    return [
        *found,
        *_syntax(flat),
        *_asked(flat),
        *_cadences(flat),
        *_micro_batches(flat),
        *_warmup(flat),
        *_shares(config),
        *_heads(flat),
        *_weights(flat),
        *_measured(flat),
        *_decoding(flat),
        *_pruned(config),
    ]


def _items(value: Any) -> list[tuple[str, Any]]:
    return list(value.items()) if isinstance(value, Mapping) else []


def _syntax(flat: Mapping[str, Any]) -> Iterator[str]:
    device = flat.get("device")
    if isinstance(device, str) and not _DEVICE.fullmatch(device):
        yield explain("device", "must be auto, cpu, cuda, cuda:N or mps", value=device)
    checkpoint = flat.get("checkpoint")
    if isinstance(checkpoint, str) and not _CHECKPOINT.fullmatch(checkpoint):
        yield explain("checkpoint", "must be best, last or step-N", value=checkpoint)
    start = flat.get("start")
    if isinstance(start, str) and not _START.fullmatch(start):
        yield explain("start", "must be step-N", value=start)
    split = flat.get("split")
    if isinstance(split, str) and split not in _SPLITS:
        yield explain("split", f"must be one of {', '.join(_SPLITS)}", value=split)
    name = flat.get("run.name")
    if isinstance(name, str) and (not name or "/" in name or "\\" in name or name in (".", "..")):
        yield explain("run.name", "must be the name of a folder", "run.dir takes a path", value=name)
    if flat.get("resume") == "auto" and "run.name" in flat and flat["run.name"] is None and not flat.get("run.dir"):
        yield explain("resume", "auto needs a run that has a fixed place", "Give run.name", value="auto")


def _asked(flat: Mapping[str, Any]) -> Iterator[str]:
    """What goes together in a prediction."""
    if "neighbours" in flat and "corpus" in flat and (flat["neighbours"] is None) != (flat["corpus"] is None):
        lacking, given = ("corpus", "neighbours") if flat["corpus"] is None else ("neighbours", "corpus")
        yield explain(lacking, f"must be given with {given}", "neighbours=5 corpus=my.txt", value=None)
    if flat.get("backend") != "onnx":
        return
    if flat.get("precision") not in (None, "fp32"):
        yield explain("precision", "is of PyTorch; an artifact has its own", "Use fp32", value=flat["precision"])
    if flat.get("device") not in (None, "auto", "cpu"):
        yield explain("device", "is of PyTorch; artifacts run on the CPU", "Use auto or cpu", value=flat["device"])


def _cadences(flat: Mapping[str, Any]) -> Iterator[str]:
    length = parse(flat.get("train.duration"))
    if length is not None and length.unit == "%":
        problem = "a percentage has nothing to refer to: this is the length of the run"
        yield explain("train.duration", problem, "Use st or ep", value=flat["train.duration"])
    lengths = ("duration", "log_every", "eval_every", "patience")
    for key in (*(f"train.{name}" for name in lengths), "checkpoint.every", "scheduler.every"):
        duration = parse(flat.get(key))
        if duration is not None and not duration.amount:
            yield explain(key, "must not be zero", value=flat[key])


def _micro_batches(flat: Mapping[str, Any]) -> Iterator[str]:
    batch_size, accumulate = flat.get("train.batch_size"), flat.get("train.accumulate")
    if isinstance(batch_size, int) and isinstance(accumulate, int) and 1 <= batch_size < accumulate:
        problem = f"must not be larger than train.batch_size ({batch_size}), which it divides into micro-batches"
        yield explain("train.accumulate", problem, value=accumulate)


def _warmup(flat: Mapping[str, Any]) -> Iterator[str]:
    length = parse(flat.get("train.duration"))
    phases = {key: parse(flat.get(f"scheduler.{key}")) for key in ("warmup", "decay")}
    given = {key: phase for key, phase in phases.items() if phase is not None and _comparable(phase, length)}
    for key, phase in given.items():
        if _part_of(phase, length) > 1:
            problem = f"must not be longer than the run (train.duration is {flat['train.duration']})"
            yield explain(f"scheduler.{key}", problem, value=flat[f"scheduler.{key}"])
    parts = [_part_of(phase, length) for phase in given.values()]
    if len(parts) == 2 and sum(parts) > 1 >= max(parts):
        yield explain("scheduler", "warmup and decay together must not be longer than the run", value=_shown(flat))


def _shown(flat: Mapping[str, Any]) -> str:
    return f"{flat['scheduler.warmup']} and {flat['scheduler.decay']}"


def _comparable(phase: Duration, length: Duration | None) -> bool:
    return phase.unit == "%" or (length is not None and length.unit == phase.unit and length.amount > 0)


def _part_of(phase: Duration, length: Duration | None) -> float:
    if phase.unit == "%":
        return float(phase.amount) / 100
    assert length is not None
    return float(phase.amount / length.amount)


def _heads(flat: Mapping[str, Any]) -> Iterator[str]:
    dim, heads = flat.get("model.dim"), flat.get("model.heads")
    if isinstance(dim, int) and isinstance(heads, int) and heads >= 1 and dim % heads:
        yield explain("model.heads", f"must divide model.dim ({dim})", value=heads)


def _weights(flat: Mapping[str, Any]) -> Iterator[str]:
    for key in ("loss.weight", "loss.pos_weight", "loss.alpha"):
        value = flat.get(key)
        if isinstance(value, list) and value and not any(value):
            yield explain(key, "must not all be 0: nothing would be learnt", value=value)


def _measured(flat: Mapping[str, Any]) -> Iterator[str]:
    overrides = flat.get("optimizer.overrides")
    entries = overrides if isinstance(overrides, list) else []
    if flat.get("optimizer.lr") == "auto" and any(isinstance(entry, Mapping) and "lr" in entry for entry in entries):
        problem = "auto measures one rate for all, and optimizer.overrides sets others"
        yield explain("optimizer.lr", problem, "Give a number, or leave lr out of the overrides", value="auto")


def _pruned(config: Mapping[str, Any]) -> Iterator[str]:
    model = dict(_items(config.get("model")))
    if config.get("prune") is not None and model.get("lora") is not None:
        problem = "the adapters of model.lora would fill in what is pruned when they are merged"
        remedy = "Leave out model.lora, or prune the trained run: trainer export prune=l1"
        yield explain("prune", problem, remedy)


def _decoding(flat: Mapping[str, Any]) -> Iterator[str]:
    for key, limit in (("min_new_tokens", "max_new_tokens"), ("num_return", "num_beams")):
        value, most = flat.get(f"decode.{key}"), flat.get(f"decode.{limit}")
        if isinstance(value, int) and isinstance(most, int) and value > most:
            yield explain(f"decode.{key}", f"must not be above decode.{limit} ({most})", value=value)
    stop = flat.get("decode.stop")
    if isinstance(stop, list) and "" in stop:
        yield explain("decode.stop", "holds an empty string, which every text does", value=stop)


def _shares(config: Mapping[str, Any]) -> Iterator[str]:
    """Shares of the training files that are held out for splits without files of their own."""
    data = dict(_items(config.get("data")))
    shares = {name: share for name, share in _items(data.get("split")) if data.get(name) is None and _is_number(share)}
    for name, share in shares.items():
        if not 0 <= share < 1:
            yield explain(f"data.split.{name}", _SHARE[1], value=share)
    if sum(shares.values()) >= 1 and all(0 <= share < 1 for share in shares.values()):
        yield explain("data.split", "the shares leave nothing to train on", value=data["split"])


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)
