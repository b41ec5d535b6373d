"""The files next to given weights that show what they were trained for: a tokenizer, the names of classes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from trainer.errors import format_error
from trainer.layout import TOKENIZER
from trainer.weights_folder import LABELS, find_tokenizer, read_encoding, related_folders

_KEY: Final = "weights"
_SHOWN: Final = 3


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
    for folder in related_folders(weights):
        learned = read_encoding(folder) | learned
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
    pairs = zip(learned.get("labels", []), json.loads(files.get(LABELS, "[]")), strict=False)
    renamed = [f"{theirs} is {ours} here" for theirs, ours in pairs if theirs != ours]
    if heads and renamed:
        more = f" and {len(renamed) - _SHOWN} more" if len(renamed) > _SHOWN else ""
        head = _layer_pattern(heads[-1])
        problem = f"the classes of {head} have other names ({', '.join(renamed[:_SHOWN])}{more})"
        remedy = f"If they are different classes, set model.weights_ignore=[{head}] to learn a new head"
        warnings.append(format_error(_KEY, problem, remedy))
    return warnings


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
