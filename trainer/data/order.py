"""The samples of an epoch: their random order, and how often each is drawn if groups of them have shares.

The order is computed in blocks, so its memory does not grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate

import numpy as np

_CHUNK = 1 << 18


class Order:
    """A random order of items, the same for the same (seed, epoch) on every machine.

    The order sorts the raw words of a counter-based generator: NumPy guarantees a stable stream of raw words, but not a
    stable result of its own `permutation`. The items of a block have neighboring words. Each block is sorted when it is
    needed, so a position is found without sorting all items.

    Args:
        size: The number of items.
        seed: The run's seed.
        epoch: The epoch, from 0.
        block_size: Approximate number of items that are sorted at a time.
    """

    def __init__(self, size: int, seed: int, epoch: int, block_size: int = 1 << 18) -> None:
        self.size = size
        self._key = np.random.SeedSequence((seed, epoch)).generate_state(2, np.uint64)
        self._num_blocks = max(1, -(-size // block_size))
        counts = np.zeros(self._num_blocks, dtype=np.int64)
        if self._num_blocks > 1:
            for _, words in self._words():
                counts += np.bincount(block_of(words, self._num_blocks), minlength=self._num_blocks)
        else:
            counts[0] = size
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self._block = lru_cache(maxsize=1)(self._sort_block)

    def __getitem__(self, positions: slice) -> np.ndarray:
        """Return the items at consecutive positions, int64."""
        start, stop, step = positions.indices(self.size)
        assert step == 1
        blocks = range(*np.searchsorted(self._starts, [start, stop], side="right") - [1, 0])
        parts = [
            self._block(block)[max(0, start - self._starts[block]) : stop - self._starts[block]] for block in blocks
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *parts])

    def _sort_block(self, block: int) -> np.ndarray:
        items, keys = [], []
        for start, words in self._words():
            chosen = np.flatnonzero(block_of(words, self._num_blocks) == block)
            items.append(start + chosen)
            keys.append(words[chosen])
        return np.concatenate(items)[np.argsort(np.concatenate(keys), kind="stable")]

    def _words(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the first item of each chunk, and the words of its items, uint64."""
        generator = np.random.Philox(key=self._key)
        for start in range(0, self.size, _CHUNK):
            yield start, generator.random_raw(min(_CHUNK, self.size - start))


def block_of(words: np.ndarray, num_blocks: int) -> np.ndarray:
    """Return the block of each uint64 word, int64: equal parts of the range of words, in ascending order."""
    return ((words >> np.uint64(32)) * np.uint64(num_blocks) >> np.uint64(32)).astype(np.int64)


_ONE = 1 << 32
"""1 in the fixed-point numbers of `GroupSampler`."""


class GroupSampler:
    """Groups of samples; each group has a fixed share of the draws of every epoch.

    An epoch has as many draws as there are samples, N. Group g, whose share is p_g, gets c_g(e) of them in epoch e:

        c_g(e) = floor(b_(g+1) + u_e) - floor(b_g + u_e),    b_g = N (p_0 + ... + p_(g-1)),    u_e in [0, 1).

    So c_g(e) is N p_g, rounded up or down, and the sum of all is N (systematic sampling: Madow and Madow 1944, "On the
    theory of systematic sampling"). u_e is the sequence of van der Corput, shifted by the seed: over many epochs the
    draws that are rounded up are spread evenly over the groups.

    A group's draws go through its samples in cycles: each cycle has every sample once, in a new random order, and an
    epoch continues where the epoch before it has ended. All of it is a function of (seed, epoch), computed without the
    epochs before.

    Args:
        groups: The group of each sample, int64 (N,), from 0.
        weights: The weight of each group, at least 0; its share is its weight, divided by the sum of all. A group
            without samples must have the weight 0.
        seed: The run's seed.
        by: What the groups are the values of, for reports.
        names: The name of each group, for reports; empty if each sample is a group.

    Attributes:
        sizes: The number of samples of each group, int64 (G,).
        by: As the argument.
        names: As the argument.
    """

    def __init__(
        self, groups: np.ndarray, weights: np.ndarray, seed: int, by: str = "", names: Sequence[str] = ()
    ) -> None:
        self.by, self.names = by, names
        self.sizes = np.bincount(groups, minlength=len(weights))
        assert not np.any(weights[self.sizes == 0])
        self._members = np.argsort(groups, kind="stable")
        self._starts = np.cumsum(self.sizes) - self.sizes
        # Whole numbers, so that the groups of equal weights have equal shares.
        scaled = np.maximum(np.rint(weights / weights.max() * 2.0**30), weights > 0).astype(np.int64).tolist()
        sums = [0, *accumulate(scaled)]
        self._bounds = np.array([each * len(groups) * _ONE // sums[-1] for each in sums], dtype=np.int64)
        words = np.random.SeedSequence((seed,), spawn_key=(1,)).generate_state(3, np.uint64)
        self._key, self._shift = words[:2], int(words[2]) % _ONE

    def counts(self, epoch: int) -> np.ndarray:
        """Return the number of draws of each group in an epoch, int64 (G,)."""
        return np.diff((self._bounds + self._offset(epoch)) >> 32)

    def counts_before(self, epoch: int) -> np.ndarray:
        """Return the number of draws of each group in all epochs before one, int64 (G,)."""
        whole, fraction = self._bounds >> 32, self._bounds & (_ONE - 1)
        return np.diff(whole * epoch + self._count_offsets(epoch, _ONE - fraction))

    def draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the samples of an epoch, group by group, int64 (N,), and for each draw the cycle that it belongs to.

        The first cycle of a group in this epoch is 0, so that (sample, cycle) is different for every draw.
        """
        counts, before = self.counts(epoch), self.counts_before(epoch)
        # Groups of one sample need no random order.
        single = np.where(self.sizes == 1, counts, 0)
        ends = np.cumsum(counts)
        cycles = np.arange(ends[-1]) - np.repeat(ends - counts, counts)
        samples = self._members[np.repeat(self._starts, counts)]
        for group in np.flatnonzero(counts - single).tolist():
            drawn = slice(ends[group] - counts[group], ends[group])
            first, place = divmod(int(before[group]), int(self.sizes[group]))
            num_cycles = -(-(place + int(counts[group])) // int(self.sizes[group]))
            places = self._cycles(group, first, num_cycles).reshape(-1)[place : place + counts[group]]
            samples[drawn] = self._members[self._starts[group] + places]
            cycles[drawn] = (place + np.arange(counts[group])) // self.sizes[group]
        return samples, cycles

    def _cycles(self, group: int, first: int, count: int) -> np.ndarray:
        """Return the order of a group's samples in `count` cycles, from the cycle `first` on, int64 (count, n)."""
        size = int(self.sizes[group])
        block, rest = divmod(first * size, 4)  # the generator makes four words at a time
        generator = np.random.Philox(key=self._key, counter=[block, 0, group, 0])
        words = generator.random_raw(rest + count * size)[rest:]
        return np.argsort(words.reshape(count, size), axis=1, kind="stable")

    def _offset(self, epoch: int) -> int:
        """Return u_e of an epoch, in units of 2 ** -32: the bits of its number in reverse, shifted by the seed."""
        return int(f"{epoch % _ONE:032b}"[::-1], 2) ^ self._shift

    def _count_offsets(self, epoch: int, thresholds: np.ndarray) -> np.ndarray:
        """Return how many of u_0, ..., u_(e-1) are at least each threshold.

        The epochs before e are a sum of powers of two, each a block of epochs whose offsets have equal distances.
        """
        counts = np.zeros_like(thresholds)
        start = 0
        for bit in reversed(range(epoch.bit_length())):
            if epoch >> bit & 1:
                distance = _ONE >> bit
                smallest = self._offset(start) % distance
                below = -((smallest - thresholds) // distance)  # (thresholds - smallest) / distance, rounded up
                counts += (1 << bit) - np.clip(below, 0, 1 << bit)
                start += 1 << bit
        return counts
