"""What a run left behind, read without torch: config, events, evaluations, scores."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.listing import list_newest_first, rank_by_score
from trainer.commands.folders import existing_run_folder
from trainer.config.stored import load_stored_config
from trainer.errors import CheckpointError, format_error
from trainer.layout import CHECKPOINTS, EVALUATIONS, METRICS
from trainer.report.jsonl import read


@dataclass(frozen=True)
class Results:
    """A run folder.

    Attributes:
        folder: Where it lies.
        config: Its resolved config; data, nothing in it is run.
        events: Those of `metrics.jsonl`, as if the run had never stopped.
        evaluations: The contents of `eval/<split>.json`, by split.
        best: The score of its best checkpoint and the step; None without one.
    """

    folder: Path
    config: dict[str, Any]
    events: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    best: dict[str, Any] | None

    def series(self, event: str, name: str, **where: Any) -> dict[int, float]:
        """A value of the events of a kind by step, of those that have the values in `where`."""
        chosen = (item for item in self.events if item["event"] == event and name in item)
        return {item["step"]: item[name] for item in chosen if all(item.get(key) == is_ for key, is_ in where.items())}


def results(path: str | None, key: str = "run") -> Results:
    """What a run folder holds; `key` is what named it, for messages.

    Raises:
        CheckpointError: There is no run, or a file of it cannot be read.
    """
    folder = existing_run_folder(path, key)
    if not (folder / METRICS).is_file():
        raise CheckpointError(format_error(key, f"has no {METRICS}", "Give a run folder", value=str(folder)))
    evaluations = {file.stem: _document(file) for file in sorted((folder / EVALUATIONS).glob("*.json"))}
    scored = rank_by_score(list_newest_first(folder / CHECKPOINTS))
    best = {"step": scored[0].step, **(scored[0].score or {})} if scored else None
    return Results(folder, load_stored_config(folder, key), read(folder / METRICS), evaluations, best)


def _document(file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(
            format_error(str(file), f"is damaged ({error})", "Evaluate again: trainer eval")
        ) from error
    return document


def flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a config with its dotted key; a mapping without keys is a value."""
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
