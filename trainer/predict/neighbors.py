"""Exact cosine k-nearest neighbors, searched block by block; ties go to the lower row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np

from trainer.protocols import Prediction

_BLOCK = 1 << 14
"""Vectors of the corpus that are in memory at once."""

_SCALE = 10**6
_ROW_BITS = 40
_SPARE = 16
"""Candidates that faiss is asked for beyond the requested count, so that ties are among them."""

_MARGIN = 1e-5
"""Cosines in float32 that differ by more than this also differ in float64, even after rounding to six decimals."""


class Corpus:
    """Texts and their vectors, stored on disk while they are searched.

    Candidates are selected in float32; their cosines are computed in float64 and rounded to six decimals; ties go to
    the lower row. A zero vector has cosine 0 to every vector.

    Args:
        folder: An empty folder for the files.
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
        """Add a text and its vector; row numbers must ascend."""
        vectors, texts = self._files
        vectors.write(_normalize(np.array([vector], dtype=np.float32)).tobytes())
        encoded = text.encode()
        texts.write(encoded)
        self._rows.append(row)
        self._ends.append(self._ends[-1] + len(encoded))

    def nearest(self, vectors: np.ndarray, count: int) -> list[list[Prediction]]:
        """Return the `count` nearest texts of each vector (B, D): their `row`, `text` and `cosine`, nearest first."""
        for file in self._files:
            file.flush()
        queries = _normalize(vectors.astype(np.float32))
        best = [np.empty(0, dtype=np.int64)] * len(queries)
        for start, block in self._blocks(vectors.shape[1]):
            for number, places in enumerate(_select_candidates(queries, block, count)):
                cosines = block[places].astype(np.float64) @ queries[number].astype(np.float64)
                best[number] = _largest(np.append(best[number], _sort_keys(cosines, start + places)), count)
        return [[self._entry(int(key)) for key in keys] for keys in best]

    def close(self) -> None:
        """Close the files; the caller removes the folder."""
        for file in self._files:
            file.close()

    def _blocks(self, dim: int) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self), _BLOCK):
            size = min(_BLOCK, len(self) - start)
            block = np.fromfile(self._vectors, dtype=np.float32, count=size * dim, offset=4 * start * dim)
            yield start, block.reshape(size, dim)

    def _entry(self, key: int) -> Prediction:
        place = -key & (1 << _ROW_BITS) - 1
        begin, end = self._ends[place], self._ends[place + 1]
        with self._texts.open("rb") as file:
            file.seek(begin)
            text = file.read(end - begin).decode()
        return {"row": self._rows[place], "text": text, "cosine": ((key + place) >> _ROW_BITS) / _SCALE}


def _select_candidates(queries: np.ndarray, block: np.ndarray, count: int) -> list[np.ndarray]:
    """Return, for each of the queries (B, D), the places in a block (N, D) that may be among its `count` nearest."""
    if count >= len(block):
        return [np.arange(len(block))] * len(queries)
    faiss = _import_faiss()
    if faiss is not None and count + _SPARE < len(block):
        cosines, places = faiss.knn(queries, block, count + _SPARE, metric=faiss.METRIC_INNER_PRODUCT)
        if (cosines[:, count - 1] - cosines[:, -1] > _MARGIN).all():
            return list(places)
    cosines = queries @ block.T
    least = np.partition(cosines, -count, axis=1)[:, -count] - _MARGIN
    return [np.flatnonzero(row >= limit) for row, limit in zip(cosines, least, strict=True)]


def _sort_keys(cosines: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Combine cosines (to six decimals) and places into one integer each: larger is nearer, and no two are equal."""
    keys: np.ndarray = (np.rint(cosines * _SCALE).astype(np.int64) << _ROW_BITS) - places
    return keys


def _largest(keys: np.ndarray, count: int) -> np.ndarray:
    """Return the `count` largest keys, descending."""
    return np.sort(keys)[::-1][:count]


def _import_faiss() -> ModuleType | None:
    """Return the library faiss if it is installed; it gives the same result faster."""
    try:
        return import_module("faiss")
    except ImportError:
        return None


def _normalize(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (N, D) scaled to length 1, float32; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    unit: np.ndarray = (vectors / np.where(lengths == 0, 1.0, lengths)).astype(np.float32)
    return unit
