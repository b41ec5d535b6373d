"""Keys that follow from others where nobody has set them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from trainer.model.weights_origin import find_tokenizer


def with_tokenizer(config: Mapping[str, Any], given: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """A configuration whose texts are read by the tokenizer of `model.weights`, and a note where that changes it.

    Args:
        config: Plain values.
        given: Full keys of the command line: `task.tokenizer=null` there learns a vocabulary all the same.
    """
    task, model = config.get("task"), config.get("model")
    weights = model.get("weights") if isinstance(model, Mapping) else None
    unset = isinstance(task, Mapping) and task.get("tokenizer", "") is None and "task.tokenizer" not in given
    place = find_tokenizer(weights) if unset and isinstance(weights, str) else None
    if place is None:
        return dict(config), []
    assert isinstance(task, Mapping)
    note = f"task.tokenizer={place}: the one that model.weights were learnt with; task.tokenizer=null learns another"
    return {**config, "task": {**task, "tokenizer": place}}, [note]
