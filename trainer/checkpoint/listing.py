"""The checkpoints in a folder, listed and ranked by age and by score. Needs no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint.manifest import STEP_FOLDER, DamagedError, find_faults, read_document, read_manifest
from trainer.files.atomic_io import list_entries
from trainer.layout import STATE, Document

REPLACED = ".old-"
"""Prefix of a checkpoint's folder while another checkpoint of the same step takes its place."""


@dataclass(frozen=True)
class ListedCheckpoint:
    """A checkpoint as its small files describe it; its tensors have not been read.

    Attributes:
        step: Its step.
        folder: Its path.
        ordinal: Rises with every save. A checkpoint with a damaged manifest gets the ordinal of the next lower step.
        score: The `score` of its `state.json`; None if no evaluation fell on its step.
        fault: The damage of its manifest or its `state.json`, if any.
    """

    step: int
    folder: Path
    ordinal: int
    score: Document | None
    fault: DamagedError | None


def find_step_folders(root: Path) -> dict[int, Path]:
    """Return step -> folder, ascending, intact or not; empty if `root` does not exist."""
    folders: dict[int, Path] = {}
    names = {path.name for path in list_entries(root)}
    for name in names:
        match = STEP_FOLDER.fullmatch(name.removeprefix(REPLACED))
        # Between the two renames of a replacement only the old folder exists.
        if match and (name == match[0] or match[0] not in names):
            folders[int(match[1])] = root / name
    return dict(sorted(folders.items()))


def list_newest_first(root: Path) -> list[ListedCheckpoint]:
    """Return every checkpoint, the one saved last first."""
    checkpoints: list[ListedCheckpoint] = []
    ordinal = 0
    for step, folder in find_step_folders(root).items():
        score = fault = None
        try:
            manifest = read_manifest(folder)
            ordinal = manifest.ordinal
            score = json.loads(read_document(folder, STATE, manifest) or "{}").get("score")
        except DamagedError as error:
            fault = error
        checkpoints.append(ListedCheckpoint(step, folder, ordinal, score, fault))
    return sorted(checkpoints, key=lambda checkpoint: (checkpoint.ordinal, checkpoint.step), reverse=True)


def find_newest_intact(root: Path, *, below: int | None = None) -> ListedCheckpoint | None:
    """Return the intact checkpoint saved last, only of steps less than `below` if that is set; None without one."""
    candidates = (each for each in list_newest_first(root) if below is None or each.step < below)
    return next((each for each in candidates if not find_faults(each.folder)), None)


def rank_by_score(newest_first: Sequence[ListedCheckpoint]) -> list[ListedCheckpoint]:
    """Return the checkpoints that have a score, the best one first; ties go to the lower loss, then to the lower step.

    The first one is what the `TrainState` of the run calls the best. If the metric changed during the run, only scores
    of the newest metric count.
    """
    scored = [(each.score, each) for each in newest_first if each.score is not None]
    scored = [(score, each) for score, each in scored if not math.isnan(score["value"])]

    comparable = [(score, each) for score, each in scored if score["name"] == scored[0][0]["name"]]
    have_losses = all(score.get("loss") is not None for score, _ in comparable)  # earlier versions stored none

    def rank(pair: tuple[Document, ListedCheckpoint]) -> tuple[float, float, int]:
        score, checkpoint = pair
        value = -score["value"] if score["higher_is_better"] else score["value"]
        return value, score["loss"] if have_losses else 0.0, checkpoint.step

    return [checkpoint for _, checkpoint in sorted(comparable, key=rank)]
