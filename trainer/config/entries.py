"""What stands in the lists and mappings of keys we own: the entries of `model.freeze`, `optimizer.overrides`, ..."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from trainer.config import schema
from trainer.config.bounds import value_at
from trainer.config.parts import value_faults
from trainer.config.sections import LoraKeys
from trainer.durations import FORMS, parse
from trainer.errors import did_you_mean, format_error
from trainer.optimizer.overrides import form_faults

_FREEZE = "An entry is a pattern of names, or {match: <pattern>, until: <duration>}"


def faults(config: Mapping[str, Any]) -> Iterator[str]:
    """A message for each entry that is wrong whatever the model; keys of the wrong type are passed over."""
    yield from _frozen(config)
    yield from _adapters(value_at(config, "model.lora"))
    yield from _renamed(value_at(config, "model.weights_rename"))
    overrides = value_at(config, "optimizer.overrides")
    if isinstance(overrides, list) and all(isinstance(entry, Mapping) for entry in overrides):
        yield from (f"optimizer.{fault}" for fault in form_faults(overrides))


def _frozen(config: Mapping[str, Any]) -> Iterator[str]:
    entries = value_at(config, "model.freeze")
    if not isinstance(entries, list):
        return
    for number, entry in enumerate(entries, start=1):
        where = f"model.freeze: entry {number}"
        pattern = entry.get("match") if isinstance(entry, Mapping) else entry
        if isinstance(entry, Mapping) and set(entry) != {"match", "until"}:
            yield format_error(where, "must have match and until", _FREEZE, value=entry)
        elif not isinstance(pattern, str) or not pattern:
            yield format_error(where, "must be a pattern of names", _FREEZE, value=entry)
        elif isinstance(entry, Mapping) and parse(entry["until"]) is None:
            yield format_error(f"{where}, until", "must be a duration", FORMS, value=entry["until"])
    if "*" in entries and not _is_trained_beside(config):
        yield format_error(
            "model.freeze", "leaves nothing to train", "Spare something, such as the head", value=entries
        )


def _is_trained_beside(config: Mapping[str, Any]) -> bool:
    """Whether something may be trained when all of the model is frozen: a new head, adapters, a loss of its own."""
    loss = config.get("loss")
    own = not isinstance(loss, Mapping) or not str(loss.get("_target_")).startswith("trainer.") or "in_features" in loss
    return own or bool(value_at(config, "model.features")) or value_at(config, "model.lora") is not None


def _adapters(lora: Any) -> Iterator[str]:
    if not isinstance(lora, Mapping):
        return
    known = schema.keys(LoraKeys)
    for key, value in lora.items():
        if key in known:
            yield from value_faults(f"model.lora.{key}", value, known[key])
        else:
            yield format_error(
                f"model.lora.{key}", "there is no such key", did_you_mean(str(key), list(known)), value=value
            )
    if lora.get("targets") == []:
        problem = "names no module"
        yield format_error(
            "model.lora.targets", problem, "Name some, such as [query_key_value], or all-linear", value=[]
        )
    if find_spec("peft") is None:
        yield format_error("model.lora", "needs the package peft, which is not there", "pip install trainer[lora]")


def _renamed(pairs: Any) -> Iterator[str]:
    for number, pair in enumerate(pairs if isinstance(pairs, list) else [], start=1):
        where = f"model.weights_rename: entry {number}"
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(part, str) for part in pair):
            yield format_error(where, "must be [regular expression, replacement]", value=pair)
            continue
        try:
            re.sub(pair[0], pair[1], "")
        except (re.error, IndexError) as error:
            yield format_error(where, f"is no regular expression ({error})", value=pair)
