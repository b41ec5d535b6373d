"""The random order of the samples of an epoch, computed in blocks: memory does not grow with the number of samples."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

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
