"""The key `metrics`: names and classes of metrics that a job computes in addition to its task's metrics."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from trainer.config import signatures
from trainer.config.groups import OWN
from trainer.config.signatures import part_attribute
from trainer.errors import format_error

_NAMED = f"{OWN}task.named_metrics.build_named_metric"
_ENTRY = "An entry is a name, or {_target_: <class>, name: <name>, <key>: <value>, ...}"
_NAME = re.compile(r"[A-Za-z_][\w-]*")
_KINDS = {
    "class": "classes",
    "tags": "tags",
    "tokens": "tokens",
    "multi_hot": "sets of labels",
    "values": "numbers",
    "views": "embeddings",
    "similarity": "similarities",
    "spans": "spans of a text",
}
"""The kinds of targets in messages."""


def fits() -> Mapping[str, Collection[str]]:
    """Return the kinds of task that each named metric fits; the name `top_K_accuracy` stands for one of each K."""
    table: Mapping[str, Collection[str]] = signatures.attribute(_NAMED, "FITS")
    return table


def kind_of(target: str, *, level: str | None, causal: bool | None) -> str:
    """Return the kind of a task: its `Target`, or for classes of tokens `tags` or, in language modeling, `tokens`."""
    if target != "class":
        return target
    return "tokens" if causal is not None else "tags" if level == "token" else "class"


def declared_kind(config: Mapping[str, Any]) -> str | None:
    """Return the kind of the task of a config, from its source; None if it does not declare it."""
    target, level, causal = (part_attribute(config, "task", name) for name in ("target", "level", "causal"))
    return kind_of(target, level=level, causal=causal) if target else None


def metric_name(entry: str | Mapping[str, Any]) -> str:
    """Return the name under which a metric is reported; of a class without one, the class's name in snake case."""
    if isinstance(entry, str):
        return entry
    if isinstance(name := entry.get("name"), str):
        return name
    words = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", str(entry.get("_target_")).rpartition(".")[2])
    return "_".join(words).lower()


def metric_names(entries: object) -> list[str]:
    """Return the names of the metrics of a config, as far as they are valid."""
    if not isinstance(entries, list):
        return []
    return [metric_name(entry) for entry in entries if isinstance(entry, str | Mapping)]


def suggest_metric(name: str, kind: str | None, own: Sequence[str]) -> str:
    """Return the remedy for an unknown metric: the nearest name that fits the task, or all."""
    named = (each for each, kinds in fits().items() if kind is None or kind in kinds)
    known = sorted([*own, *(each.replace("_K_", "_2_") for each in named)])  # every name here can be typed
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}"


def name_problem(name: str, kind: str | None, own: Sequence[str]) -> tuple[str, str] | None:
    """Return the problem of a metric that is named without a class, and its remedy; None if there is none.

    Args:
        name: The name.
        kind: The kind of the task; None if it is not known.
        own: The metrics that the task computes anyway: naming them is no error.
    """
    if name in own:
        return None
    if re.fullmatch(r"top_(K|0+)_accuracy", name):
        return f"needs a number above 0 in place of {name.split('_')[1]}", "Write top_2_accuracy, for example"
    kinds = fits().get(re.sub(r"^top_[1-9]\d{0,5}_accuracy$", "top_K_accuracy", name))
    if kinds is None:
        return "there is no such metric", suggest_metric(name, kind, own)
    if kind is not None and kind not in kinds:
        fitting = " or ".join(_KINDS[each] for each in kinds)
        problem = f"is a metric of {fitting}, but the targets of the task are {_KINDS.get(kind, kind)}"
        return problem, suggest_metric("", kind, own)
    return None


def validate_metrics(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of the entries of `metrics`, as far as the source of the task declares what it has."""
    entries = config.get("metrics")
    if not isinstance(entries, list):
        return
    has_task = "task" in config  # else it is checked with the config of the run
    own, kind = part_attribute(config, "task", "monitors") or (), declared_kind(config)
    for number, entry in enumerate(entries):
        path = f"metrics.{number}"
        if isinstance(entry, str):
            if has_task and (problem := name_problem(entry, kind, own)):
                yield format_error(path, *problem, value=entry)
        elif not isinstance(entry, Mapping) or not isinstance(entry.get("_target_"), str):
            yield format_error(path, "must be a metric", _ENTRY, value=entry)
        else:
            yield from _validate_class(path, entry, own)
    names = metric_names(entries)
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield format_error("metrics", "two metrics have the same name", "Set name: in one of them", value=name)


def _validate_class(path: str, entry: Mapping[str, Any], own: Collection[str]) -> Iterator[str]:
    name = entry.get("name", metric_name(entry))
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield format_error(f"{path}.name", "must be a word of letters, digits, - and _", value=name)
    elif name == "loss" or name in own:
        problem = "is the name of a value that the task reports"
        yield format_error(f"{path}.name", problem, f"Set another one: name: my_{name}", value=name)
