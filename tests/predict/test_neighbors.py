"""Nearest neighbors compared with brute force, including ties, with and without faiss."""

import sys
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import pytest

import trainer.predict.neighbors as module
from trainer.predict.neighbors import Corpus


@pytest.fixture
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    made = Corpus(tmp_path_factory.mktemp("corpus"))
    yield made
    made.close()


def units(vectors: np.ndarray) -> np.ndarray:
    """Return vectors scaled to length 1 in float32; zero vectors stay zero."""
    lengths = np.linalg.norm(vectors.astype(float), axis=1, keepdims=True)
    return np.divide(vectors, lengths, where=lengths > 0, out=np.zeros(vectors.shape)).astype(np.float32).astype(float)


def brute_force(queries: np.ndarray, vectors: np.ndarray, count: int) -> list[list[tuple[int, float]]]:
    """Return row numbers and cosines in float64 by a stable sort of all rows."""
    neighbors = []
    for cosines in np.round(units(queries) @ units(vectors).T, 6):
        order = np.argsort(-cosines, kind="stable")[:count]
        neighbors.append([(int(place) + 1, float(cosines[place])) for place in order])
    return neighbors


@pytest.mark.parametrize("with_faiss", [False, True])
@pytest.mark.parametrize("block", [7, 64, 1 << 14])
def test_neighbors_equal_brute_force(
    corpus: Corpus, block: int, with_faiss: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    calls = []
    if with_faiss:
        faiss = ModuleType("faiss")
        faiss.METRIC_INNER_PRODUCT = 0  # type: ignore[attr-defined]

        def knn(queries: np.ndarray, vectors: np.ndarray, k: int, metric: int) -> tuple[np.ndarray, np.ndarray]:
            """Return ties in arbitrary order, here the last first."""
            calls.append(k)
            products = queries @ vectors.T
            places = np.argsort(products, axis=1, kind="stable")[:, ::-1][:, :k]
            return np.take_along_axis(products, places, axis=1), places

        faiss.knn = knn  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "faiss", faiss)
    else:
        monkeypatch.setitem(sys.modules, "faiss", None)
    random = np.random.default_rng(0)
    vectors = random.integers(-2, 3, size=(201, 3)).astype(np.float32)  # few directions: many ties, and zero vectors
    vectors[100:] = random.standard_normal((101, 3))
    vectors[60:100] = 1.0
    for row, vector in enumerate(vectors, 1):
        corpus.add(row, f"text {row} é", vector.tolist())
    queries = np.concatenate([vectors[:5], np.zeros((1, 3), np.float32), vectors[98:103]])
    neighbors = corpus.nearest(queries, 6)

    assert [[(hit["row"], hit["cosine"]) for hit in hits] for hits in neighbors] == brute_force(queries, vectors, 6)
    assert all(hit["text"] == f"text {hit['row']} é" for hits in neighbors for hit in hits)
    assert bool(calls) is (with_faiss and block > 22)


def test_row_numbers_are_kept_and_a_small_corpus_returns_all_rows(corpus: Corpus) -> None:
    corpus.add(2, "two", [1.0, 0.0])
    corpus.add(7, "seven", [1.0, 1.0])
    (hits,) = corpus.nearest(np.array([[0.0, 3.0]]), 5)

    assert hits == [{"row": 7, "text": "seven", "cosine": 0.707107}, {"row": 2, "text": "two", "cosine": 0.0}]
    corpus.add(9, "", [0.0, 1.0])
    assert corpus.nearest(np.array([[0.0, 3.0]]), 1) == [[{"row": 9, "text": "", "cosine": 1.0}]]


def test_cosines_that_differ_only_in_float32_are_ties(corpus: Corpus) -> None:
    random = np.random.default_rng(0)
    query = random.standard_normal(256)
    for row in range(1, 101):
        corpus.add(row, "", (query + 2e-5 * random.standard_normal(256)).tolist())
    (hits,) = corpus.nearest(query[None], 5)

    assert [(hit["row"], hit["cosine"]) for hit in hits] == [(row, 1.0) for row in range(1, 6)]
