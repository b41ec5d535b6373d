"""Samples of tokens in the layouts that text models take."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.task.packing import Layout, lay_out, padded_inputs, token_inputs

VOCAB_SIZE = 50
MAX_LENGTH = 64


def samples(count: int, seed: int = 0) -> list[np.ndarray]:
    """Tokens of `count` samples of 1 to 64."""
    random = np.random.default_rng(seed)
    return [random.integers(VOCAB_SIZE, size=length) for length in random.integers(1, MAX_LENGTH + 1, size=count)]


def packed(texts: list[np.ndarray]) -> dict[str, Tensor]:
    """Packed rows, and where each sample's tokens lie in them."""
    layout = lay_out([len(text) for text in texts], max_length=MAX_LENGTH, batching="packed")
    return token_inputs(texts, layout, pad_id=0)


def padded(texts: list[np.ndarray], *, pad_id: int = 0, width: int = MAX_LENGTH) -> dict[str, Tensor]:
    return padded_inputs(texts, pad_id=pad_id, width=width)


def token_layouts(texts: list[np.ndarray]) -> list[tuple[Layout, dict[str, Tensor]]]:
    """The padded and the packed layout, each with its inputs."""
    found = []
    for batching in ("fixed", "packed"):
        layout = lay_out([len(text) for text in texts], max_length=MAX_LENGTH, batching=batching)  # type: ignore[arg-type]
        found.append((layout, token_inputs(texts, layout, pad_id=0)))
    return found


def of_samples(layout: Layout, output: Tensor) -> list[Tensor]:
    """Outputs (R, L, C) of all places, sample by sample: each (its length, C)."""
    flat = output.flatten(0, 1)
    return list(flat[torch.from_numpy(layout.places)].split(layout.lengths.tolist()))


def exported_batches() -> list[dict[str, Tensor]]:
    """A padded batch to trace, and batches of sizes that differ from it."""
    traced = padded([text[:20] for text in samples(2, seed=1)], width=31)
    short = padded([text[:1] for text in samples(5, seed=2)], width=1)
    full = padded([*samples(2, seed=3), np.arange(MAX_LENGTH) % VOCAB_SIZE])
    return [traced, short, full, padded(samples(1, seed=4)), padded(samples(9, seed=5))]


def types_of(texts: list[np.ndarray]) -> list[np.ndarray]:
    """Token types of pairs: the second half of each sample is the second text."""
    return [(np.arange(len(text)) >= len(text) // 2).astype(np.int64) for text in texts]


def typed(layout: Any, texts: list[np.ndarray]) -> dict[str, Tensor]:
    """Inputs of the function `layout` with token types."""
    inputs: dict[str, Tensor] = layout(texts)
    return inputs | {"token_type_ids": layout(types_of(texts))["input_ids"]}
