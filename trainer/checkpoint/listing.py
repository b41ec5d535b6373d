"""Which checkpoints a folder holds, and in which order they are asked for. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.atomic_io import entries
from trainer.checkpoint.manifest import FOLDER, Damaged, read_document, read_manifest, verify

REPLACED = ".old-"
"""A checkpoint's folder bears this prefix while another one of the same step takes its place."""


@dataclass(frozen=True)
class Found:
    """A checkpoint as far as its small files tell, its tensors unread.

    Attributes:
        step: Its step.
        folder: Where it lies.
        ordinal: Rises with every save; one with a damaged manifest counts as saved with the one of the step below it.
        score: What its `state.json` says under `score`, None where no evaluation fell on its step.
        fault: What is wrong with its manifest or its `state.json`.
    """

    step: int
    folder: Path
    ordinal: int
    score: Mapping[str, Any] | None
    fault: Damaged | None


def folders(root: Path) -> dict[int, Path]:
    """Step to folder, ascending, intact or not; empty where `root` does not exist."""
    found: dict[int, Path] = {}
    names = {path.name for path in entries(root)}
    for name in names:
        match = FOLDER.fullmatch(name.removeprefix(REPLACED))
        # Between the two renames of a replacement there is only the old one.
        if match and (name == match[0] or match[0] not in names):
            found[int(match[1])] = root / name
    return dict(sorted(found.items()))


def newest_first(root: Path) -> list[Found]:
    """Every checkpoint, the one saved last first."""
    found: list[Found] = []
    ordinal = 0
    for step, folder in folders(root).items():
        score = fault = None
        try:
            ordinal = read_manifest(folder).ordinal
            score = json.loads(read_document(folder, "state.json") or "{}").get("score")
        except Damaged as damage:
            fault = damage
        found.append(Found(step, folder, ordinal, score, fault))
    return sorted(found, key=lambda one: (one.ordinal, one.step), reverse=True)


def newest_intact(root: Path, *, below: int | None = None) -> Found | None:
    """The intact checkpoint saved last, of those of a step `below` the given one; None where there is none."""
    candidates = (one for one in newest_first(root) if below is None or one.step < below)
    return next((one for one in candidates if not verify(one.folder)), None)


def best_first(newest: Sequence[Found]) -> list[Found]:
    """Those that have a score, the best one first, the lower step first where scores are equal.

    The newest score says which metric counts, should it have changed.
    """
    scored = [(one.score, one) for one in newest if one.score is not None and not math.isnan(one.score["value"])]

    def rank(scored_one: tuple[Mapping[str, Any], Found]) -> tuple[float, int]:
        score, one = scored_one
        return -score["value"] if score["higher_is_better"] else score["value"], one.step

    comparable = [(score, one) for score, one in scored if score["name"] == scored[0][0]["name"]]
    return [one for _, one in sorted(comparable, key=rank)]
