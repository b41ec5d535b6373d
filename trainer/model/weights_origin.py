"""What given weights were made for, as far as it lies beside them: a tokenizer, the names of classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from trainer.errors import format_error

_KEY: Final = "weights"
_TOKENIZER: Final = "tokenizer.json"
_LABELS: Final = "labels.json"
_STATE: Final = "task.json"
_SHOWN: Final = 3


def tokenizer_beside(weights: str) -> str | None:
    """What `task.tokenizer` takes to read texts as they were read in training; None where nothing tells.

    Args:
        weights: A run, one of its checkpoints, a folder with weights, or a file in such a folder.
    """
    for folder in _folders(weights):
        if "tokenizer" in _learnt(folder):
            return str(folder)
    return None


def doubts(
    weights: str,
    loaded: Mapping[str, tuple[int, ...]],
    files: Mapping[str, str],
    *,
    vocab_size: int | None,
    num_outputs: int | None,
) -> list[str]:
    """Warnings of tensors that fit by their shape and mean something else here.

    Args:
        weights: As in `tokenizer_beside`.
        loaded: The shapes of the model's tensors that were taken from there, by name, in the model's order.
        files: The task's artifact files, name to text.
        vocab_size: Entries of the task's vocabulary.
        num_outputs: Outputs that the task asks for.
    """
    learnt: dict[str, Any] = {}
    for folder in _folders(weights):
        learnt = _learnt(folder) | learnt
    found = []
    rows = [name for name, shape in loaded.items() if len(shape) == 2 and shape[0] == vocab_size]
    tokens, here = _tokens(learnt.get("tokenizer")), _tokens(files.get(_TOKENIZER))
    others = sum(here.get(number) != token for number, token in tokens.items())
    if rows and here and others:
        problem = f"{others} of its {len(tokens)} tokens are others here, and {rows[0]} has a row for each"
        remedy = f"task.tokenizer={tokenizer_beside(weights)} takes its own"
        found.append(format_error(_KEY, problem, f"{remedy}; model.weights_ignore=[{_layer(rows[0])}] learns new rows"))
    heads = [name for name, shape in loaded.items() if shape and shape[0] == num_outputs]
    pairs = zip(learnt.get("labels", []), json.loads(files.get(_LABELS, "[]")), strict=False)
    other = [f"{theirs} is {ours} here" for theirs, ours in pairs if theirs != ours]
    if heads and other:
        more = f" and {len(other) - _SHOWN} more" if len(other) > _SHOWN else ""
        head = _layer(heads[-1])
        problem = f"classes that {head} tells apart have other names ({', '.join(other[:_SHOWN])}{more})"
        remedy = f"Where they are other classes, model.weights_ignore=[{head}] learns a new head"
        found.append(format_error(_KEY, problem, remedy))
    return found


def _folders(weights: str) -> Iterator[Path]:
    """Where what belongs to weights may lie, the nearest first."""
    place = Path(weights).expanduser()
    folder = place if place.is_dir() else place.parent
    yield folder
    yield folder / "model"
    if folder.parent.name == "checkpoints":
        yield folder.parent.parent / "model"


def _learnt(folder: Path) -> dict[str, Any]:
    """The `tokenizer`, as text, and the `labels` of a folder of artifacts or of a checkpoint."""
    try:
        if (folder / _STATE).is_file():
            state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
            return {key: state[key] for key in ("tokenizer", "labels") if key in state}
        tokenizer, labels = folder / _TOKENIZER, folder / _LABELS
        found = {"tokenizer": tokenizer.read_text(encoding="utf-8")} if tokenizer.is_file() else {}
        return found | ({"labels": json.loads(labels.read_text(encoding="utf-8"))} if labels.is_file() else {})
    except (OSError, ValueError, TypeError):  # of somebody else, or damaged: it tells nothing
        return {}


def _tokens(text: str | None) -> dict[int, str]:
    """The tokens of a `tokenizer.json` by their number; empty where there is none, or none that can be read."""
    from tokenizers import Tokenizer

    if text is None:
        return {}
    try:
        return {number: token for token, number in Tokenizer.from_str(text).get_vocab().items()}
    except Exception:  # the library raises bare Exception
        return {}


def _layer(name: str) -> str:
    """A pattern of the names of a layer, of which one tensor's is given."""
    layer = name.rpartition(".")[0]
    return f"{layer}.*" if layer else name
