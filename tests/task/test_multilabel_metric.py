import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from trainer.task.classification_metrics import MeanAveragePrecision, average_precisions, decide, multilabel_metrics


def computed(logits: torch.Tensor, target: torch.Tensor, threshold: float, size: int = 7) -> dict[str, float]:
    metrics = multilabel_metrics(logits.shape[1], threshold)
    for start in range(0, len(logits), size):
        metrics.update(logits[start : start + size], target[start : start + size])
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("threshold", [0.5, 0.2])
@pytest.mark.parametrize("spread", [3.0, 0.1])
def test_they_are_those_of_scikit_learn(threshold: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # With the small spread whole batches lie in [0, 1], where logits could be taken for probabilities.
    logits = torch.randn(50, 4, generator=generator) * spread + 0.5
    target = (torch.rand(50, 4, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.8])).float()
    predicted = (1 / (1 + np.exp(-logits.double().numpy())) > threshold).astype(int)

    assert computed(logits, target, threshold) == pytest.approx(
        {
            "micro_f1": reference.f1_score(target, predicted, average="micro"),
            "macro_f1": reference.f1_score(target, predicted, average="macro"),
            "mean_average_precision": reference.average_precision_score(target, logits, average="macro"),
            "exact_match": reference.accuracy_score(target, predicted),
        },
        abs=1e-6,
    )


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=30))
def test_average_precision_with_equal_scores(rows: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([[float(score)] for score, _ in rows])
    target = torch.tensor([[positive] for _, positive in rows])
    found = average_precisions(scores, target)

    if not target.any():
        assert found.isnan().all()
        return
    assert found.item() == pytest.approx(reference.average_precision_score(target[:, 0], scores[:, 0]), abs=1e-12)


def test_labels_without_a_positive_are_left_out_of_the_mean() -> None:
    metric = MeanAveragePrecision()
    metric.update(torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 6.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert metric.compute().item() == 1.0

    metric.reset()
    metric.update(torch.zeros(2, 3), torch.zeros(2, 3))
    assert metric.compute().isnan()


def test_many_labels_are_taken_in_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(20, 600, generator=generator), torch.rand(20, 600, generator=generator) < 0.4
    target[0] = True
    metric = MeanAveragePrecision()
    metric.update(logits, target.float())

    assert metric.compute().item() == pytest.approx(reference.average_precision_score(target, logits), abs=1e-12)


def test_more_is_better_everywhere_and_a_reset_forgets() -> None:
    metrics = multilabel_metrics(2, 0.5)
    metrics.update(torch.ones(2, 2), torch.zeros(2, 2))
    metrics.reset()
    metrics.update(torch.ones(2, 2), torch.ones(2, 2))

    assert all(metric.higher_is_better for metric in metrics.values())
    assert {name: value.item() for name, value in metrics.compute().items()} == dict.fromkeys(metrics, 1.0)


def test_a_probability_at_the_threshold_is_not_above_it() -> None:
    assert decide(torch.tensor([[0.0, 1e-3, -1e-3]]), 0.5).tolist() == [[False, True, False]]
