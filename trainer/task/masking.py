"""Which tokens of a sample are hidden, and what stands in their place."""

from __future__ import annotations

import numpy as np

_MASKED, _RANDOM = 0.8, 0.1
"""Shares of the hidden tokens that become the mask token, and another token; the rest stays as it is."""


def choose(words: np.ndarray, share: float, whole_words: bool, generator: np.random.Generator) -> np.ndarray:
    """The places of the tokens of a sample that are to be found again, rising.

    They are units, tokens or whole words, in random order, taken while they begin before `share` times the tokens that
    are of a word, the one that crosses that with the probability of its part before it. The first one always is.

    Args:
        words: The word of each token (T,), -1 for those that are never hidden.
        share: Of the tokens, in (0, 1).
        whole_words: Whether a unit is a word.
        generator: SampleRng the order.
    """
    places = np.flatnonzero(words >= 0)
    if not len(places):
        return places
    units = words[places] if whole_words else places
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    order = generator.permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    taken = share * len(places) - before > generator.random() * sizes[order]
    taken[0] = True
    chosen = np.zeros(len(sizes), dtype=bool)
    chosen[order[taken]] = True
    kept: np.ndarray = places[chosen[unit]]
    return kept


def hide(
    ids: np.ndarray, places: np.ndarray, mask_id: int, others: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """The ids of a sample as the model sees them, (T,).

    Args:
        ids: As they are, (T,).
        places: Of the tokens that are to be found again.
        mask_id: The mask token.
        others: The tokens that may stand for another.
        generator: SampleRng which of them become what.
    """
    fate = generator.random(len(places))
    random = others[generator.integers(len(others), size=len(places))]
    result = ids.copy()
    result[places] = np.where(fate < _MASKED, mask_id, np.where(fate < _MASKED + _RANDOM, random, ids[places]))
    return result
