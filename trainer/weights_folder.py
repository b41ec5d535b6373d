"""The folder of a weights file: what it says about the data that the weights were trained on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from trainer.documents import SHAPES
from trainer.layout import CHECKPOINTS, TASK, TOKENIZER, Document, expand_home
from trainer.shapes import parse_json, read_bytes

LABELS = "labels.json"
AFTER_PADDING = ("camembert", "roberta", "xlm-roberta")
"""Architectures of transformers whose first position is the id of the padding token + 1."""


def find_tokenizer(weights: str) -> str | None:
    """Return the value of `task.tokenizer` that encodes texts as in training; None if no folder says.

    Args:
        weights: A run, one of its checkpoints, a folder with weights, or a file in such a folder.
    """
    return next((str(folder) for folder in related_folders(weights) if "tokenizer" in read_encoding(folder)), None)


def related_folders(weights: str) -> Iterator[Path]:
    """Yield the folders that may describe the weights, the nearest first."""
    path = Path(expand_home(weights))
    folder = path if os.path.isdir(path) else path.parent  # unlike a Path's own method, also for an impossible name
    yield folder
    yield folder / "model"
    if folder.parent.name == CHECKPOINTS:
        yield folder.parent.parent / "model"


def read_encoding(folder: Path) -> Document:
    """Return the `tokenizer`, as text, and the `labels` of a folder of artifacts or of a checkpoint."""
    try:
        if (folder / TASK).is_file():
            state = parse_json(read_bytes(folder / TASK), SHAPES[TASK])
            return {key: state[key] for key in ("tokenizer", "labels") if key in state}
        tokenizer, labels = folder / TOKENIZER, folder / LABELS
        encoding = {"tokenizer": read_bytes(tokenizer).decode()} if tokenizer.is_file() else {}
        return encoding | ({"labels": parse_json(read_bytes(labels), [str])} if labels.is_file() else {})
    except (OSError, ValueError):  # a damaged file, or another program's, says nothing
        return {}


def count_positions(folder: Path, changes: Mapping[str, Any]) -> int | None:
    """Return the longest sample in tokens that a model of transformers in a folder can take; None if it does not say.

    Args:
        folder: The folder with the model's `config.json`.
        changes: Changes of the model's config.
    """
    try:
        stored = parse_json(read_bytes(folder / "config.json"))
    except (OSError, ValueError):  # reported when the model is loaded
        return None
    config = {**(stored if isinstance(stored, dict) else {}), **changes}
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    padding = config.get("pad_token_id", 1)
    if not isinstance(positions, int) or not isinstance(padding, int):
        return None
    return positions - (padding + 1 if config.get("model_type") in AFTER_PADDING else 0)
