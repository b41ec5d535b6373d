"""Randomness of single samples: a function of (seed, epoch, sample), which neither workers nor a resume can move."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Draws:
    """The random generators of the samples of one micro-batch.

    Attributes:
        seed: The run's seed.
        epoch: The epoch the samples are drawn in.
        ids: The samples' positions in their split.
        training: Whether they are drawn to be trained on; augmentation is for those alone.
    """

    seed: int
    epoch: int
    ids: Sequence[int]
    training: bool = False

    def generator(self, position: int) -> np.random.Generator:
        """The generator of the sample at `position` of the micro-batch; a fresh one at every call."""
        key = np.random.SeedSequence((self.seed, self.epoch, int(self.ids[position])))
        return np.random.Generator(np.random.Philox(key))
