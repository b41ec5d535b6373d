"""Which samples meet in which step: a pure function of (seed, epoch), so that resuming replays nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class BatchIndices:
    """The samples of one forward pass.

    Attributes:
        epoch: The epoch they belong to, from 0.
        ids: Their positions in the split.
    """

    epoch: int
    ids: tuple[int, ...]


class BatchPlan:
    """The global batches of a training run.

    Every epoch goes once over all samples in a new order; its last batch may be smaller. Neither the number of
    micro-batches nor of workers takes part in it.

    Args:
        num_samples: Samples of the split, N.
        batch_size: Samples of one optimizer step.
        seed: The run's seed.
        lengths: Tokens of each sample, int64 (N,): batches are then made of samples of similar length (`bucketed`),
            which changes what meets in a batch; None shuffles freely.
    """

    def __init__(self, num_samples: int, batch_size: int, seed: int, lengths: np.ndarray | None = None) -> None:
        assert num_samples > 0
        assert batch_size > 0
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = lengths
        self.steps_per_epoch = -(-num_samples // batch_size)
        self._order = lru_cache(maxsize=2)(self._make_order)

    def batch(self, step: int) -> BatchIndices:
        """The samples of optimizer step `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return BatchIndices(epoch, tuple(self._order(epoch)[start : start + self.batch_size].tolist()))

    def micro_batches(self, start: int, stop: int, accumulate: int) -> Iterator[BatchIndices]:
        """The micro-batches of the steps from `start` to before `stop`, `accumulate` a step."""
        for step in range(start, stop):
            yield from split(self.batch(step), accumulate)

    def _make_order(self, epoch: int) -> np.ndarray:
        order = permutation(self.num_samples, self.seed, epoch)
        if self.lengths is None:
            return order
        order = order[np.argsort(self.lengths[order], kind="stable")]
        full = self.num_samples // self.batch_size
        # The partial batch stays last, as in every other order.
        batches = [order[index * self.batch_size : (index + 1) * self.batch_size] for index in range(full)]
        shuffled = [batches[index] for index in permutation(full, self.seed, epoch)]
        return np.concatenate([*shuffled, order[full * self.batch_size :]])


def split(batch: BatchIndices, parts: int) -> list[BatchIndices]:
    """A batch in `parts` micro-batches of nearly the same size; fewer where it has fewer samples."""
    pieces = np.array_split(np.array(batch.ids), min(parts, len(batch.ids)))
    return [BatchIndices(batch.epoch, tuple(piece.tolist())) for piece in pieces]


def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """A random order of `size` items, int64, the same for the same (seed, epoch) wherever it runs.

    It sorts the raw words of a counter-based generator: NumPy promises these for ever, its `permutation` it does not.
    """
    key = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)
    return np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")
