"""The nearest vectors of a corpus by cosine: exact, in blocks, of equals the first."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

_BLOCK = 1 << 14
_SCALE = 10**6
_ROW_BITS = 40
_SPARE = 16
"""Candidates that faiss is asked for beyond those wanted, so that equal ones come with them."""


class Corpus:
    """Texts and their vectors, on disk while they are searched.

    Cosines are those of float32 vectors to six decimals; where they are equal the smaller row is nearer. A vector of
    zeros has the cosine 0 to all others.

    Args:
        folder: An empty folder of its own.
    """

    def __init__(self, folder: Path) -> None:
        self._vectors = folder / "vectors"
        self._texts = folder / "texts"
        self._rows = array("q")
        self._ends = array("q", [0])
        self._files = (self._vectors.open("wb"), self._texts.open("wb"))

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: int, text: str, vector: Sequence[float]) -> None:
        """One more text; rows rise."""
        vectors, texts = self._files
        vectors.write(_normalized(np.array([vector], dtype=np.float32)).tobytes())
        encoded = text.encode()
        texts.write(encoded)
        self._rows.append(row)
        self._ends.append(self._ends[-1] + len(encoded))

    def nearest(self, vectors: np.ndarray, count: int) -> list[list[dict[str, Any]]]:
        """The `count` nearest texts of each of the vectors (B, D): their `row`, `text` and `cosine`, nearest first."""
        for file in self._files:
            file.flush()
        queries = _normalized(vectors.astype(np.float32))
        best = np.empty((len(queries), 0), dtype=np.int64)
        faiss = _faiss()
        for start, block in self._blocks(vectors.shape[1]):
            keys = None if faiss is None else _keys_by_faiss(faiss, queries, block, start, count)
            if keys is None:
                keys = _keys(queries @ block.T, np.arange(start, start + len(block)))
            best = _largest(np.concatenate([best, keys], axis=1), count)
        return [[self._entry(int(key)) for key in row] for row in best]

    def _blocks(self, dim: int) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self), _BLOCK):
            size = min(_BLOCK, len(self) - start)
            block = np.fromfile(self._vectors, dtype=np.float32, count=size * dim, offset=4 * start * dim)
            yield start, block.reshape(size, dim)

    def _entry(self, key: int) -> dict[str, Any]:
        place = -key & (1 << _ROW_BITS) - 1
        begin, end = self._ends[place], self._ends[place + 1]
        with self._texts.open("rb") as file:
            file.seek(begin)
            text = file.read(end - begin).decode()
        return {"row": self._rows[place], "text": text, "cosine": ((key + place) >> _ROW_BITS) / _SCALE}

    def close(self) -> None:
        """Closes the files; the folder is the caller's."""
        for file in self._files:
            file.close()


def _keys(cosines: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Cosines to six decimals and places as one whole number: the larger, the nearer; no two are equal."""
    keys: np.ndarray = (np.rint(cosines.astype(np.float64) * _SCALE).astype(np.int64) << _ROW_BITS) - places
    return keys


def _largest(keys: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest of each row of (B, N), falling."""
    if keys.shape[1] > count:
        keys = -np.partition(-keys, count - 1, axis=1)[:, :count]
    return -np.sort(-keys, axis=1)


def _keys_by_faiss(
    faiss: ModuleType, queries: np.ndarray, block: np.ndarray, start: int, count: int
) -> np.ndarray | None:
    """The keys of the candidates of a block; None where equal ones may be missing among them."""
    wanted = count + _SPARE
    if wanted >= len(block):
        return None
    cosines, places = faiss.knn(queries, block, wanted, metric=faiss.METRIC_INNER_PRODUCT)
    keys = _keys(cosines, start + places)
    first, last = _largest(keys, count)[:, -1] >> _ROW_BITS, keys.min(axis=1) >> _ROW_BITS
    return keys if bool((first > last + 1).all()) else None


def _faiss() -> ModuleType | None:
    """The library faiss where it is installed; it is faster at the same."""
    try:
        return import_module("faiss")
    except ImportError:
        return None


def _normalized(vectors: np.ndarray) -> np.ndarray:
    """Vectors (N, D) of length 1, float32; zeros stay."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: np.ndarray = (vectors / np.where(lengths == 0, 1.0, lengths)).astype(np.float32)
    return unit
