"""Mean and standard deviation of columns, batch by batch."""

from __future__ import annotations

import numpy as np


class Moments:
    """What standardizing V columns needs to know of them; NaN and infinite entries are passed over.

    Batches are merged without a difference of large sums, so that a small spread around a large mean keeps its digits.

    Source: Chan, Golub and LeVeque 1983, "Algorithms for computing the sample variance".

    Attributes:
        count: Entries of each column, (V,).
        mean: Their means, (V,); 0 where there is none.
        low: The smallest of each, (V,); infinite where there is none.
        high: The largest of each, (V,).
    """

    def __init__(self, num_columns: int) -> None:
        self.count = np.zeros(num_columns, dtype=np.int64)
        self.mean = np.zeros(num_columns)
        self.low = np.full(num_columns, np.inf)
        self.high = np.full(num_columns, -np.inf)
        self._squares = np.zeros(num_columns)

    def add(self, values: np.ndarray) -> None:
        """Takes the rows `values`, float64 (N, V)."""
        known = np.isfinite(values)
        filled = np.where(known, values, 0.0)
        count = known.sum(axis=0)
        # What overflows here is refused by whoever reads `std`.
        with np.errstate(over="ignore", invalid="ignore"):
            mean = filled.sum(axis=0) / np.maximum(count, 1)
            apart = np.where(known, filled - mean, 0.0)
            share = count / np.maximum(self.count + count, 1)
            shift = mean - self.mean
            self._squares += (apart**2).sum(axis=0) + shift**2 * self.count * share
            self.mean += shift * share
        self.low = np.minimum(self.low, np.where(known, values, np.inf).min(axis=0, initial=np.inf))
        self.high = np.maximum(self.high, np.where(known, values, -np.inf).max(axis=0, initial=-np.inf))
        self.count += count

    @property
    def std(self) -> np.ndarray:
        """Standard deviations over all entries, (V,); 0 where all are the same, not finite where they are too large."""
        with np.errstate(invalid="ignore"):
            spread: np.ndarray = np.sqrt(self._squares / np.maximum(self.count, 1))
        return np.where(self.low < self.high, spread, 0.0)
