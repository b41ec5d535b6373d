"""The plan of the samples of each step: a pure function of (seed, epoch), so resuming replays nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np

from trainer.data.order import GroupSampler, Order


@dataclass(frozen=True)
class BatchIndices:
    """The samples of a batch or a micro-batch.

    Attributes:
        epoch: The epoch, from 0.
        ids: The positions of the samples in the split.
        piece: The position among the micro-batches of a step, over all devices.
        is_filler: The samples are another device's: this device runs them too, but they count for nothing.
        repeats: For each sample, a number that is different each time that an epoch draws it; empty if that is once.
    """

    epoch: int
    ids: Sequence[int]
    piece: int = 0
    is_filler: bool = False
    repeats: Sequence[int] = ()

    def part(self, positions: Sequence[int]) -> BatchIndices:
        """Return the samples at some positions of this batch."""
        ids, repeats = (tuple(values[each] for each in positions) for values in (self.ids, self.repeats or self.ids))
        return replace(self, ids=ids, repeats=repeats if self.repeats else ())


class BatchPlan:
    """The global batches of a training run.

    Every epoch visits all samples once, in a new order; its last batch may be smaller. With `sampler`, an epoch has as
    many samples, but may draw some of them several times and others not. The plan depends neither on the number of
    micro-batches nor on the number of workers.

    Args:
        num_samples: Samples of the split, N.
        batch_size: Samples of one optimizer step.
        seed: The run's seed.
        lengths: Tokens of each sample, int64 (N,): batches then hold samples of similar length (`bucketed`), which
            changes which samples meet in a batch; None shuffles freely.
        divide: Divides the samples of a step, as positions in the split, into micro-batches of a fixed shape, as
            positions in the step; None divides each step into as many micro-batches as the caller asks for.
        sampler: Draws the samples of an epoch; None draws every sample once.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        lengths: np.ndarray | None = None,
        divide: Callable[[Sequence[int]], list[list[int]]] | None = None,
        sampler: GroupSampler | None = None,
    ) -> None:
        assert num_samples > 0
        assert batch_size > 0
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.lengths = lengths
        self.divide = divide
        self.sampler = sampler
        self.steps_per_epoch = -(-num_samples // batch_size)
        self._order = lru_cache(maxsize=2)(self._make_order)
        self._draws = None if sampler is None else lru_cache(maxsize=2)(sampler.draw)

    def batch(self, step: int) -> BatchIndices:
        """Return the samples of optimizer step `step`, counted from 0 over all epochs."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        positions = self._order(epoch)[start : start + self.batch_size]
        if self._draws is None:
            return BatchIndices(epoch, tuple(positions.tolist()))
        samples, repeats = (values[positions].tolist() for values in self._draws(epoch))
        return BatchIndices(epoch, tuple(samples), repeats=tuple(repeats))

    def micro_batches(
        self, step: int, accumulate: int, rank: int = 0, num_ranks: int = 1, *, fill: bool = False
    ) -> list[BatchIndices]:
        """Return a device's share of the micro-batches of a step.

        A step has `accumulate` micro-batches. Each is divided among the devices, so it has the same samples whatever
        the number of devices is. Micro-batches of a fixed shape (`divide`) are not divided: the devices take turns.

        Args:
            step: The optimizer step, counted from 0 over all epochs.
            accumulate: Micro-batches of a step; not used with `divide`.
            rank: The device, from 0.
            num_ranks: The number of devices.
            fill: Give a device without a sample of its own the first sample of the micro-batch as a filler; otherwise
                it leaves the micro-batch out.
        """
        if self.divide is not None:
            return self._whole_micro_batches(self.batch(step), self.divide, rank, num_ranks, fill=fill)
        shares: list[BatchIndices] = []
        for index, micro_batch in enumerate(split_batch(self.batch(step), accumulate)):
            pieces, piece = split_batch(micro_batch, num_ranks), index * num_ranks + rank
            if rank < len(pieces):
                shares.append(replace(pieces[rank], piece=piece))
            elif fill:
                shares.append(replace(micro_batch.part([0]), piece=piece, is_filler=True))
        return shares

    @staticmethod
    def _whole_micro_batches(
        batch: BatchIndices,
        divide: Callable[[Sequence[int]], list[list[int]]],
        rank: int,
        num_ranks: int,
        *,
        fill: bool,
    ) -> list[BatchIndices]:
        shares = [replace(batch.part(positions), piece=piece) for piece, positions in enumerate(divide(batch.ids))]
        own = shares[rank::num_ranks]
        if fill and len(own) < -(-len(shares) // num_ranks):
            own.append(replace(batch.part([0]), piece=len(own) * num_ranks + rank, is_filler=True))
        return own

    def _make_order(self, epoch: int) -> Order | np.ndarray:
        order = Order(self.num_samples, self.seed, epoch)
        if self.lengths is None:
            return order
        every = order[:]
        lengths = self.lengths if self._draws is None else self.lengths[self._draws(epoch)[0]]
        every = every[np.argsort(lengths[every], kind="stable")]
        full = self.num_samples // self.batch_size
        # The partial batch stays last, as in every other order.
        batches = [every[index * self.batch_size : (index + 1) * self.batch_size] for index in range(full)]
        shuffled = [batches[index] for index in Order(full, self.seed, epoch)[:]]
        return np.concatenate([*shuffled, every[full * self.batch_size :]])


def split_batch(batch: BatchIndices, parts: int) -> list[BatchIndices]:
    """Split a batch into `parts` micro-batches of nearly equal size, fewer if the batch has fewer samples."""
    if parts == 1:
        return [batch]
    parts = min(parts, len(batch.ids))
    size, larger = divmod(len(batch.ids), parts)
    bounds = [part * size + min(part, larger) for part in range(parts + 1)]
    return [batch.part(range(start, stop)) for start, stop in pairwise(bounds)]
