"""What a person reads of the outputs that several tasks share: plain JSON, probabilities to six decimals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.protocols import Batching

if TYPE_CHECKING:
    from torch import Tensor

_DECIMALS = 6


def rounded(value: float) -> float:
    """A probability or the like, to six decimals: float32 knows no more."""
    return round(value, _DECIMALS)


def likeliest(output: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """The `count` likeliest classes of each row of logits (N, C) with their probabilities; of equals the first."""
    probabilities, order = output.float().softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    return [
        [(number, rounded(probability)) for number, probability in zip(numbers, found, strict=True)]
        for numbers, found in zip(order[:, :count].tolist(), probabilities[:, :count].tolist(), strict=True)
    ]


def class_answers(output: Tensor, labels: Sequence[str], top: int) -> list[dict[str, Any]]:
    """For each row of logits (B, C): `label` and `probability`; where `top` is above 1 the `top` `probabilities`."""
    return [
        chosen("label", [(labels[number], probability) for number, probability in best])
        for best in likeliest(output, top)
    ]


def chosen(key: str, best: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """The first of the `best` as `key` and `probability`; of several all `probabilities`."""
    name, probability = best[0]
    return {key: name, "probability": probability} | ({"probabilities": dict(best)} if len(best) > 1 else {})


def outputs_of_tokens(output: Tensor, wanted: Sequence[np.ndarray], batching: Batching) -> list[Tensor]:
    """The outputs (W, C) at the `wanted` tokens of each sample.

    Args:
        output: Padded: of all tokens, (B, T, C). Packed: of those that were asked for, (B, W, C).
        wanted: The places of the tokens in each sample.
        batching: The layout of the inputs.
    """
    if batching == "packed":
        return [found[: len(places)] for found, places in zip(output, wanted, strict=True)]
    return [found[places] for found, places in zip(output, wanted, strict=True)]
