"""Randomness of single samples: a function of (seed, epoch, sample), which neither workers nor a resume can move."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SampleRng:
    """The random generators of the samples of one micro-batch.

    Attributes:
        seed: The run's seed.
        epoch: The epoch the samples are drawn in.
        ids: The samples' positions in their split.
        training: Whether they are drawn to be trained on; augmentation is for those alone.
        num_rows: Rows of the split, for a sample that wants further ones; 0 where nobody asks.
    """

    seed: int
    epoch: int
    ids: Sequence[int]
    training: bool = False
    num_rows: int = 0

    def generator(self, position: int, *stream: int) -> np.random.Generator:
        """The generator of the sample at `position` of the micro-batch; a fresh one at every call.

        Each `stream` of a sample draws independently of the others and of the one without a number.
        """
        key = np.random.SeedSequence((self.seed, self.epoch, int(self.ids[position])), spawn_key=stream)
        return np.random.Generator(np.random.Philox(key))

    def of(self, ids: Sequence[int]) -> SampleRng:
        """The generators of other samples of the same epoch."""
        return replace(self, ids=ids)
