import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from torch import Tensor
from torch.nn import functional as F

from trainer.evaluate import metric_directions
from trainer.task import embedding_metrics
from trainer.task.embedding_metrics import positive_ranks, retrieval_metrics, score_metrics, uniformity_metric


def random_vectors(samples: int, views: int, width: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(samples * views, width, generator=torch.Generator().manual_seed(seed))


def measured(output: Tensor, views: int, *, batch: int | None = None) -> dict[str, float]:
    metrics = retrieval_metrics(negatives=views > 2)
    target = torch.arange(len(output) // views)[:, None].repeat(1, views)
    size = batch or len(target)
    for start in range(0, len(target), size):
        part = target[start : start + size]
        metrics.update(output[start * views : start * views + part.numel()], part)
    return {name: value.item() for name, value in metrics.compute().items()}


def by_definition(output: Tensor, views: int) -> dict[str, float]:
    """The same, one sample after the other, in numpy."""
    vectors = output.double().numpy().reshape(-1, views, output.shape[1])
    vectors = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    anchors, positives, count = vectors[:, 0], vectors[:, 1], len(vectors)
    places = []
    for number in range(count):
        cosines = [float(anchors[number] @ positive) for positive in positives]
        nearer = sorted(range(count), key=lambda other, cosines=cosines: -cosines[other])  # type: ignore[misc]
        places.append(nearer.index(number) + 1)
    apart = [math.exp(-2 * np.sum((anchors[i] - anchors[j]) ** 2)) for i in range(count) for j in range(count) if i < j]
    values = {
        "recall_at_1": sum(place == 1 for place in places) / count,
        "recall_at_5": sum(place <= 5 for place in places) / count,
        "mrr": sum(1 / place for place in places) / count,
        "alignment": float(np.mean([np.sum((a - p) ** 2) for a, p in zip(anchors, positives, strict=True)])),
        "uniformity": math.log(sum(apart) / len(apart)),
    }
    if views > 2:
        won = [all(row[0] @ row[1] > row[0] @ negative for negative in row[2:]) for row in vectors]
        values["triplet_accuracy"] = sum(won) / count
    return values


@settings(max_examples=40)
@given(st.integers(2, 30), st.sampled_from([2, 3, 4]), st.integers(0, 1000), st.integers(1, 30))
def test_metrics_equal_their_definitions_for_any_batch_size(samples: int, views: int, seed: int, batch: int) -> None:
    output = random_vectors(samples, views, seed=seed)

    assert measured(output, views, batch=batch) == pytest.approx(by_definition(output, views), rel=1e-5, abs=1e-5)


def test_cosines_computed_in_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    output = random_vectors(23, 2)
    whole = measured(output, 2)
    monkeypatch.setattr(embedding_metrics, "_MAX_COSINES", 70)

    assert measured(output, 2) == pytest.approx(whole, rel=1e-6)
    assert whole == pytest.approx(by_definition(output, 2), rel=1e-5)


def test_uniformity_equals_the_formula_of_the_paper() -> None:
    output = random_vectors(40, 2)
    anchors = F.normalize(output, dim=1)[::2]
    metric = uniformity_metric()
    metric.update(output, torch.zeros(40, 2, dtype=torch.int64))

    expected = torch.pdist(anchors).pow(2).mul(-2).exp().mean().log()
    torch.testing.assert_close(metric.compute()["uniformity"], expected, rtol=1e-5, atol=1e-5)


def test_identical_vectors_retrieve_nothing() -> None:
    values = measured(torch.ones(20, 3), 2)

    assert (values["recall_at_1"], values["recall_at_5"], values["mrr"]) == (0, 0, pytest.approx(1 / 10))
    assert (values["alignment"], values["uniformity"]) == (0, pytest.approx(0, abs=1e-6))


def test_vectors_without_a_direction_retrieve_nothing() -> None:
    for value in (0.0, float("nan"), float("inf")):
        values = measured(torch.full((12, 3), value), 2)
        assert values["recall_at_5"] == 0
        assert values["mrr"] == pytest.approx(1 / 6)


def test_length_of_vectors_does_not_matter() -> None:
    output = random_vectors(9, 2)
    lengths = torch.linspace(0.1, 50, 18)[:, None]

    assert measured(output * lengths, 2) == pytest.approx(measured(output, 2), rel=1e-5)


def test_perfect_embeddings() -> None:
    values = measured(torch.eye(8).repeat_interleave(2, dim=0), 2)

    assert values == {
        "recall_at_1": 1,
        "recall_at_5": 1,
        "mrr": 1,
        "alignment": 0,
        "uniformity": pytest.approx(-4, abs=1e-6),
    }


def test_a_single_sample() -> None:
    values = measured(random_vectors(1, 2), 2)

    assert values["mrr"] == 1
    assert math.isnan(values["uniformity"])


def test_ranks_are_among_the_positives_of_all_samples() -> None:
    vectors = torch.tensor([[[1.0, 0], [0, 1]], [[0, 1.0], [1, 0]], [[-1.0, 0], [-1, 0]]])

    # The second anchor's positive is no nearer than the third sample's: that one counts as nearer.
    assert positive_ranks(vectors).tolist() == [2, 3, 1]


def test_correlations_equal_scipy_on_cosines() -> None:
    output, target = random_vectors(30, 2), torch.rand(30, generator=torch.Generator().manual_seed(1)).round(decimals=1)
    metrics = score_metrics()
    for start in (0, 10, 20):
        metrics.update(output[2 * start : 2 * start + 20], target[start : start + 10])
    cosines = F.cosine_similarity(output[::2], output[1::2])
    values = metrics.compute()

    assert values["spearman"].item() == pytest.approx(spearmanr(cosines, target).statistic, abs=1e-6)
    assert values["pearson"].item() == pytest.approx(pearsonr(cosines, target).statistic, abs=1e-6)


def test_half_precision_is_measured_in_float32() -> None:
    output = random_vectors(10, 2).bfloat16()

    assert measured(output, 2) == measured(output.float(), 2)


def test_metrics_have_directions_and_pickle() -> None:
    known = metric_directions(retrieval_metrics(negatives=True)) | metric_directions(score_metrics())

    assert [name for name, higher in known.items() if not higher] == ["loss", "alignment", "uniformity"]
    assert known.keys() >= {"mrr", "triplet_accuracy", "spearman"}
    pickle.loads(pickle.dumps(retrieval_metrics(negatives=True)))
