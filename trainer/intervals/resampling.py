"""Draws and deletions of the rows of an evaluation, for the bootstrap and the jackknife."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from trainer.sample_rng import SampleRng

Estimate = Callable[[np.ndarray], np.ndarray]
"""Maps the counts of the units, float64 (D, U), to the metric of each draw, (D,); NaN if it is not defined."""

NUM_DRAWS: Final = 1_000
MAX_UNITS: Final = 16_384
"""More rows are divided into this many groups."""

_CHUNK = 2**20
"""Counts that are in memory at once."""

_SEED = 0


@dataclass(frozen=True)
class Units:
    """The units that a draw takes: rows, or groups of rows.

    Attributes:
        of_row: The unit of each row, int64 (N,).
        count: The number of units, U.
    """

    of_row: np.ndarray
    count: int

    @classmethod
    def for_rows(cls, num_rows: int) -> Units:
        """Return the units of some rows: each row if there are few, else random groups of nearly equal size."""
        if num_rows <= MAX_UNITS:
            return cls(np.arange(num_rows), num_rows)
        order = SampleRng(_SEED, 1, [num_rows]).generator(0).permutation(num_rows)
        return cls(order % MAX_UNITS, MAX_UNITS)

    @property
    def are_rows(self) -> bool:
        return self.count == len(self.of_row)

    def sums(self, *columns: np.ndarray) -> np.ndarray:
        """Return the sum of each column (N,) over the rows of each unit, (U, K)."""
        if self.are_rows:
            return np.stack(columns, axis=1).astype(np.float64)
        return np.stack([np.bincount(self.of_row, weights=column, minlength=self.count) for column in columns], axis=1)

    def draws(self) -> Iterator[np.ndarray]:
        """Yield the counts of the units in each draw, float64 (D, U), some draws at a time."""
        size = max(1, _CHUNK // self.count)
        if size >= NUM_DRAWS:
            yield _all_draws(self.count)
        else:
            for start in range(0, NUM_DRAWS, size):
                yield _draw(self.count, range(start, min(start + size, NUM_DRAWS)))

    def deletions(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the counts of the units without each group of them, float64 (G, U), and the rows of the groups, (G,).

        Each unit is a group; more than `NUM_DRAWS` units are divided at random into that many groups.
        """
        group = np.arange(self.count)
        if self.count > NUM_DRAWS:
            group = SampleRng(_SEED, 2, [self.count]).generator(0).permutation(self.count) % NUM_DRAWS
        num_rows = np.bincount(group[self.of_row])
        size = max(1, _CHUNK // self.count)
        for start in range(0, len(num_rows), size):
            groups = np.arange(start, min(start + size, len(num_rows)))
            yield (group != groups[:, None]).astype(np.float64), num_rows[groups]


@lru_cache(maxsize=2)  # a run evaluates several splits of equal sizes
def _all_draws(count: int) -> np.ndarray:
    draws = _draw(count, range(NUM_DRAWS))
    draws.flags.writeable = False
    return draws


def _draw(count: int, numbers: range) -> np.ndarray:
    """Return the counts of the units in the draws with these numbers, float64 (D, U)."""
    rng = SampleRng(_SEED, 0, range(NUM_DRAWS))
    chosen = (rng.generator(number).integers(count, size=count) for number in numbers)
    return np.stack([np.bincount(units, minlength=count) for units in chosen]).astype(np.float64)
