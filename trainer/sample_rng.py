"""Random numbers per sample: a function of (seed, epoch, sample), so neither workers nor a resume change them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SampleRng:
    """The random generators of the samples of one micro-batch.

    Attributes:
        seed: The run's seed.
        epoch: The epoch of the micro-batch.
        ids: The positions of the samples in their split.
        training: True for samples to train on; only these are augmented.
        num_rows: Rows of the split, for a task that adds rows to a batch; 0 if it adds none.
        repeats: For each sample, a number that is different each time that the epoch draws it; empty if that is once.
    """

    seed: int
    epoch: int
    ids: Sequence[int]
    training: bool = False
    num_rows: int = 0
    repeats: Sequence[int] = ()

    def generator(self, position: int, *stream: int) -> np.random.Generator:
        """Return a new generator for the sample at `position` of the micro-batch.

        Each `stream` of a sample is independent of the sample's other streams, including the one without a number.
        """
        words = [self.seed, self.epoch, int(self.ids[position])]
        if self.repeats and (repeat := self.repeats[position]):
            words.append(repeat)
        key = np.random.SeedSequence(words, spawn_key=stream)
        return np.random.Generator(np.random.Philox(key))

    def for_samples(self, ids: Sequence[int]) -> SampleRng:
        """Return the generators of other samples of the same epoch."""
        return replace(self, ids=ids, repeats=())
