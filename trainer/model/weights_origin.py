"""The files next to given weights that show what they were trained for: a tokenizer, the names of classes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from trainer.errors import format_error
from trainer.layout import CHECKPOINTS, MODEL, TASK, TOKENIZER

_KEY: Final = "weights"
_LABELS: Final = "labels.json"
_SHOWN: Final = 3


def find_tokenizer(weights: str) -> str | None:
    """Return the value of `task.tokenizer` that tokenizes as in the training of the weights; None if unknown.

    Args:
        weights: A run, one of its checkpoints, a folder with weights, or a file in such a folder.
    """
    for folder in _folders(weights):
        if "tokenizer" in _learned(folder):
            return str(folder)
    return None


def mismatch_warnings(
    weights: str,
    loaded: Mapping[str, tuple[int, ...]],
    files: Mapping[str, str],
    *,
    vocab_size: int | None,
    num_outputs: int | None,
) -> list[str]:
    """Return warnings about tensors that have the right shape but another meaning in this task.

    Args:
        weights: As in `find_tokenizer`.
        loaded: Shapes of the model's tensors that were loaded from the weights, by name, in the model's order.
        files: The task's artifact files, name to text.
        vocab_size: Size of the task's vocabulary.
        num_outputs: Number of outputs that the task needs.
    """
    learned: dict[str, Any] = {}
    for folder in _folders(weights):
        learned = _learned(folder) | learned
    warnings = []
    embeddings = [name for name, shape in loaded.items() if len(shape) == 2 and shape[0] == vocab_size]
    tokens, own_tokens = _tokens(learned.get("tokenizer")), _tokens(files.get(TOKENIZER))
    different = sum(own_tokens.get(number) != token for number, token in tokens.items())
    if embeddings and own_tokens and different:
        name = embeddings[0]
        problem = f"{different} of its {len(tokens)} tokens are different here, and {name} has a row per token"
        remedy = (
            f"Set task.tokenizer={find_tokenizer(weights)} to use the tokenizer of the weights, or "
            f"model.weights_ignore=[{_layer_pattern(name)}] to learn new rows"
        )
        warnings.append(format_error(_KEY, problem, remedy))
    heads = [name for name, shape in loaded.items() if shape and shape[0] == num_outputs]
    pairs = zip(learned.get("labels", []), json.loads(files.get(_LABELS, "[]")), strict=False)
    renamed = [f"{theirs} is {ours} here" for theirs, ours in pairs if theirs != ours]
    if heads and renamed:
        more = f" and {len(renamed) - _SHOWN} more" if len(renamed) > _SHOWN else ""
        head = _layer_pattern(heads[-1])
        problem = f"the classes of {head} have other names ({', '.join(renamed[:_SHOWN])}{more})"
        remedy = f"If they are different classes, set model.weights_ignore=[{head}] to learn a new head"
        warnings.append(format_error(_KEY, problem, remedy))
    return warnings


def _folders(weights: str) -> Iterator[Path]:
    """Yield the folders that may contain files that belong to the weights, the nearest first."""
    path = Path(weights).expanduser()
    folder = path if path.is_dir() else path.parent
    yield folder
    yield folder / MODEL
    if folder.parent.name == CHECKPOINTS:
        yield folder.parent.parent / MODEL


def _learned(folder: Path) -> dict[str, Any]:
    """Return the `tokenizer`, as text, and the `labels` of a folder of artifacts or of a checkpoint."""
    try:
        if (folder / TASK).is_file():
            state = json.loads((folder / TASK).read_text(encoding="utf-8"))
            return {key: state[key] for key in ("tokenizer", "labels") if key in state}
        tokenizer, labels = folder / TOKENIZER, folder / _LABELS
        learned = {"tokenizer": tokenizer.read_text(encoding="utf-8")} if tokenizer.is_file() else {}
        return learned | ({"labels": json.loads(labels.read_text(encoding="utf-8"))} if labels.is_file() else {})
    except (OSError, ValueError, TypeError):  # damaged, or files of another program
        return {}


def _tokens(text: str | None) -> dict[int, str]:
    """Return the tokens of a `tokenizer.json` by number; empty if it is missing or cannot be read."""
    from tokenizers import Tokenizer

    if text is None:
        return {}
    try:
        return {number: token for token, number in Tokenizer.from_str(text).get_vocab().items()}
    except Exception:  # the library raises a bare Exception
        return {}


def _layer_pattern(name: str) -> str:
    """Return a pattern that matches all tensors of the layer of a tensor."""
    layer = name.rpartition(".")[0]
    return f"{layer}.*" if layer else name
