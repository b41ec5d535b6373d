"""Parts that must fit each other: what is said of each in its source is compared before anything is loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from trainer.config import signatures
from trainer.config.catalogue import Catalogue
from trainer.constraints import literals
from trainer.errors import did_you_mean, format_error

_PUBLISH = "trainer.export.artifacts.publish"
_CACHE = "onnx_cache"
"""The format of a decoder that reads token by token."""


NO_METRIC = "is not a metric of this task that has a direction"


def unfit_targets(kinds: Collection[str], target: str) -> str:
    """What is wrong with a loss that takes other kinds of targets than the task has."""
    return f"takes {' or '.join(kinds)} targets, the task has {target}"


def faults(config: Mapping[str, Any], catalogue: Catalogue) -> Iterator[str]:
    """What does not fit, as far as the sources of our own parts tell."""
    kinds, targets = _attribute(config, "loss", "targets"), _targets(config)
    for target, why in targets.items() if kinds else ():
        if target not in kinds:
            read = {option: _read(catalogue, option, "targets", "loss") for option in catalogue.options("loss")}
            fitting = [option for option, taken in read.items() if {*targets} <= {*taken}]
            problem = unfit_targets(kinds, f"{target}{why}")
            yield format_error("loss", problem, f"These fit: {', '.join(fitting)}", value=_named(config))
    reads, inputs = _attribute(config, "model", "inputs"), _attribute(config, "task", "inputs")
    if reads and inputs and inputs not in reads:
        fitting = [option for option in catalogue.options("model") if inputs in _read(catalogue, option, "inputs")]
        problem = f"reads {' or '.join(reads)}, the task has {inputs}"
        yield format_error("model", problem, f"These fit: {', '.join(fitting)}", value=_named(config, "model"))
    levels, level = _attribute(config, "model", "levels"), _attribute(config, "task", "level")
    if levels and level and level not in levels:
        fitting = [option for option in catalogue.options("model") if level in _read(catalogue, option, "levels")]
        problem = f"gives an output for each {' or '.join(levels)}, the task needs one for each {level}"
        yield format_error("model", problem, f"These fit: {', '.join(fitting)}", value=_named(config, "model"))
    yield from _monitor(config)
    yield from _causality(config)
    yield from format_faults(config)


def format_faults(config: Mapping[str, Any]) -> Iterator[str]:
    """Formats of `export` that no model of the task can be written in."""
    task, formats = config.get("task"), _at(config.get("export"), "formats")
    target = task.get("_target_") if isinstance(task, Mapping) else None
    if not isinstance(formats, list) or _CACHE not in formats or not str(target).startswith("trainer."):
        return
    if signatures.attribute(str(target), "causal") is not True:
        found = signatures.read(_PUBLISH)
        fitting = [name for name in literals(found.annotations["formats"]) if name != _CACHE] if found else []
        problem = f"{_CACHE} is of causal language models, and the task is {_named(config, 'task')}"
        yield format_error("export.formats", problem, f"These fit: {', '.join(fitting)}", value=formats)


def _targets(config: Mapping[str, Any]) -> dict[str, str]:
    """The kinds of targets of the task's batches, in evaluation and to train on, and what makes them so."""
    target = _attribute(config, "task", "target")
    keys = _attribute(config, "task", "shares_by") or ()
    amounts = {key: _at(config["task"], key) for key in keys}
    makers = [f"task.{key}" for key, amount in amounts.items() if isinstance(amount, int | float) and amount > 0]
    found = {target: ""} if target else {}
    return found | ({"shares": f" by {' and '.join(makers)}"} if makers else {})


def _at(part: Any, key: str) -> Any:
    """The value of a dotted key below a part; None where there is none."""
    for name in key.split("."):
        part = part.get(name) if isinstance(part, Mapping) else None
    return part


def _monitor(config: Mapping[str, Any]) -> Iterator[str]:
    """A metric that picks the checkpoint and that the task has not, whatever its data."""
    known, wanted = _attribute(config, "task", "monitors"), _at(config.get("checkpoint"), "monitor")
    if known and isinstance(wanted, str) and wanted not in ("", "loss", *known):
        yield format_error("checkpoint.monitor", NO_METRIC, did_you_mean(wanted, ["loss", *known]), value=wanted)


def _causality(config: Mapping[str, Any]) -> Iterator[str]:
    """A language model must not see the token it predicts; a masked one must see what comes behind it."""
    wanted = _attribute(config, "task", "causal")
    causal = _attribute(config, "model", "causal")
    if wanted is None or causal is None or wanted == causal:
        return
    problem = "sees the tokens that it is to predict" if wanted else "does not see what comes behind a masked token"
    remedy = "Use model=decoder" if wanted else "Use model=text_encoder"
    yield format_error("model", problem, remedy, value=_named(config, "model"))


def _attribute(config: Mapping[str, Any], group: str, name: str) -> Any:
    part = config.get(group)
    target = part.get("_target_") if isinstance(part, Mapping) else None
    return signatures.attribute(target, name) if isinstance(target, str) else None


def _read(catalogue: Catalogue, option: str, name: str, group: str = "model") -> Collection[str]:
    return signatures.attribute(str(catalogue.content(group, option).get("_target_")), name) or ()


def _named(config: Mapping[str, Any], group: str = "loss") -> str:
    return str(config[group]["_target_"]).rsplit(".", 1)[-1]
