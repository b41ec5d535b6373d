"""What may change when a run is resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from trainer.errors import ConfigError

SAFE = (
    "device",
    "resume",
    "trust",
    "run.*",
    "train.duration",
    "train.accumulate",
    "train.log_every",
    "train.eval_every",
    "train.patience",
    "loader.workers",
    "loader.prefetch",
    "loader.pin_memory",
    "loader.persistent_workers",
    "loader.eval_batch_size",
    "checkpoint.*",
    "logger.*",
    "export.*",
)
"""How a run is executed and shown. Everything else is what is learnt, so a resumed run keeps it."""

NOTES = {
    "train.duration": "what is left of the schedule follows the new length, so the learning rate may jump at this step",
}
"""What a person should know of a change that is allowed."""

_ABSENT: Any = object()


def resume_config(stored: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The configuration that a run goes on with, and a note for each change that has consequences.

    Args:
        stored: The configuration in the checkpoint.
        current: The one that is asked for, complete.

    Raises:
        ConfigError: They differ in what a run keeps; every difference is named, old and new.
    """
    current = _with_found(stored, current)
    changes = list(differences(stored, current))
    refused = [change for change in changes if not any(fnmatchcase(change[0], safe) for safe in SAFE)]
    if refused:
        raise ConfigError(*(_refusal(*change, stored) for change in refused))
    notes = [f"{key}: {_change(old, new)}; {NOTES[key]}" for key, old, new in changes if key in NOTES]
    return dict(current), notes


def _with_found(stored: Mapping[str, Any], current: Mapping[str, Any]) -> Mapping[str, Any]:
    """A learning rate that was asked to be found has been found."""
    optimizer = current.get("optimizer")
    if not isinstance(optimizer, Mapping) or optimizer.get("lr") != "auto" or "lr" not in stored.get("optimizer", {}):
        return current
    return {**current, "optimizer": {**optimizer, "lr": stored["optimizer"]["lr"]}}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, old and new value of whatever differs; a part with another `_target_` is one difference."""
    for key in dict.fromkeys([*old, *new]):
        path, before, after = f"{prefix}{key}", old.get(key, _ABSENT), new.get(key, _ABSENT)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            targets = before.get("_target_"), after.get("_target_")
            if targets[0] != targets[1]:
                yield f"{path}._target_", *targets
            else:
                yield from differences(before, after, f"{path}.")
        elif _listed(before) != _listed(after) or isinstance(before, bool) != isinstance(after, bool):
            yield path, before, after


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _change(old: Any, new: Any) -> str:
    return " -> ".join("(absent)" if value is _ABSENT else repr(value) for value in (old, new))


def _refusal(key: str, old: Any, new: Any, stored: Mapping[str, Any]) -> str:
    remedy = "Leave it as it was, or start a new run"
    if "weights" in stored.get("model", {}):
        remedy += "; model.weights=<checkpoint> starts one from the weights"
    return f"{key}: a resumed run keeps it: {_change(old, new)}. {remedy}."
