"""The folder of a weights file: what it says about the data that the weights were trained on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from trainer.layout import CHECKPOINTS, TASK, TOKENIZER, Document, expand_home

LABELS = "labels.json"


def find_tokenizer(weights: str) -> str | None:
    """Return the value of `task.tokenizer` that encodes texts as in training; None if no folder says.

    Args:
        weights: A run, one of its checkpoints, a folder with weights, or a file in such a folder.
    """
    return next((str(folder) for folder in related_folders(weights) if "tokenizer" in read_encoding(folder)), None)


def related_folders(weights: str) -> Iterator[Path]:
    """Yield the folders that may describe the weights, the nearest first."""
    path = Path(expand_home(weights))
    folder = path if path.is_dir() else path.parent
    yield folder
    yield folder / "model"
    if folder.parent.name == CHECKPOINTS:
        yield folder.parent.parent / "model"


def read_encoding(folder: Path) -> Document:
    """Return the `tokenizer`, as text, and the `labels` of a folder of artifacts or of a checkpoint."""
    try:
        if (folder / TASK).is_file():
            state = json.loads((folder / TASK).read_text(encoding="utf-8"))
            return {key: state[key] for key in ("tokenizer", "labels") if key in state}
        tokenizer, labels = folder / TOKENIZER, folder / LABELS
        encoding = {"tokenizer": tokenizer.read_text(encoding="utf-8")} if tokenizer.is_file() else {}
        return encoding | ({"labels": json.loads(labels.read_text(encoding="utf-8"))} if labels.is_file() else {})
    except (OSError, ValueError, TypeError):  # a damaged file, or another program's, says nothing
        return {}
