"""Metrics by name: the numbers of scikit-learn, for every kind of task that they fit."""

import math
import re
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torchmetrics import MetricCollection

from trainer.task.named_metrics import FITS, build_named_metric, prepare_classes, prepare_labels

ROWS, CLASSES = 60, 4


def unchanged(output: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return output, target


def measure(name: str, kind: str, output: torch.Tensor, target: torch.Tensor) -> float:
    """Return the value of a metric that gets the rows in three parts."""
    prepare = {"multi_hot": prepare_labels, "values": unchanged}.get(kind, prepare_classes)
    metric = build_named_metric(name, kind, output.shape[-1], prepare)
    parts = [7, 1, len(output) - 8]
    for rows, expected in zip(output.split(parts), target.split(parts), strict=True):
        metric.update(rows, expected)
    return float(metric.compute())


def scores(*shape: int, seed: int = 0) -> torch.Tensor:
    # Rounded, so that some scores are equal.
    return (2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))).round(decimals=1)


def classes(*shape: int) -> torch.Tensor:
    return torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(1))


def _macro(function: Callable[..., float], probabilities: np.ndarray, target: np.ndarray) -> float:
    one_hot = np.eye(probabilities.shape[1], dtype=int)[target]
    return float(np.mean([function(one_hot[:, each], probabilities[:, each]) for each in range(one_hot.shape[1])]))


OF_CLASSES: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], float]] = {
    "auroc": lambda scores, predicted, target: reference.roc_auc_score(target, scores, multi_class="ovr"),
    "average_precision": lambda scores, predicted, target: _macro(reference.average_precision_score, scores, target),
    "balanced_accuracy": lambda scores, predicted, target: reference.balanced_accuracy_score(target, predicted),
    "cohen_kappa": lambda scores, predicted, target: reference.cohen_kappa_score(target, predicted),
    "macro_precision": lambda scores, predicted, target: reference.precision_score(
        target, predicted, average="macro", zero_division=0
    ),
    "macro_recall": lambda scores, predicted, target: reference.recall_score(
        target, predicted, average="macro", zero_division=0
    ),
    "mcc": lambda scores, predicted, target: reference.matthews_corrcoef(target, predicted),
    "top_K_accuracy": lambda scores, predicted, target: reference.top_k_accuracy_score(target, scores, k=2),
    "weighted_f1": lambda scores, predicted, target: reference.f1_score(target, predicted, average="weighted"),
}


def _of_sets(function: Callable[..., float], average: str) -> Callable[[np.ndarray, np.ndarray], float]:
    return lambda target, scores: function(target, scores > 0.5, average=average, zero_division=0)


OF_LABELS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "auroc": partial(reference.roc_auc_score, average="macro"),
    "average_precision": partial(reference.average_precision_score, average="macro"),
    "mcc": lambda target, scores: reference.matthews_corrcoef(target.ravel(), scores.ravel() > 0.5),
    **{
        f"{average}_{name}": _of_sets(function, average)
        for average in ("micro", "macro", "weighted")
        for name, function in (("precision", reference.precision_score), ("recall", reference.recall_score))
    },
    "weighted_f1": _of_sets(reference.f1_score, "weighted"),
}
OF_VALUES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "explained_variance": reference.explained_variance_score,
    "mape": reference.mean_absolute_percentage_error,
    "max_error": lambda target, output: float(
        np.mean([reference.max_error(target[:, each], output[:, each]) for each in range(target.shape[1])])
    ),
    "median_absolute_error": reference.median_absolute_error,
}


def test_every_name_is_compared_with_a_reference() -> None:
    assert FITS.keys() == OF_CLASSES.keys() | OF_LABELS.keys() | OF_VALUES.keys()


@pytest.mark.parametrize("name", OF_CLASSES)
def test_classes(name: str) -> None:
    output, target = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0)), classes(ROWS)
    probabilities = output.softmax(-1).double().numpy()
    probabilities /= probabilities.sum(1, keepdims=True)
    expected = OF_CLASSES[name](probabilities, output.argmax(-1).numpy(), target.numpy())
    assert measure(name.replace("K", "2"), "class", output, target) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", [name for name, kinds in FITS.items() if "tags" in kinds])
def test_tags_without_the_ignored_ones(name: str) -> None:
    output, target = scores(ROWS, 5, CLASSES), classes(ROWS, 5)
    ignored = scores(ROWS, 5, seed=3) > 1
    kept, flat = output[~ignored], target[~ignored]
    name = name.replace("K", "2")
    expected = measure(name, "class", kept, flat)
    assert measure(name, "tags", output, target.masked_fill(ignored, -100)) == expected


@pytest.mark.parametrize("name", [name for name, kinds in FITS.items() if "multi_hot" in kinds])
def test_sets_of_labels(name: str) -> None:
    output, target = scores(ROWS, CLASSES), (scores(ROWS, CLASSES, seed=2) > 0.5).float()
    expected = OF_LABELS[name](target.numpy().astype(int), output.sigmoid().double().numpy())
    assert measure(name, "multi_hot", output, target) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", OF_VALUES)
@pytest.mark.parametrize("width", [1, 3])
def test_values(name: str, width: int) -> None:
    output, target = scores(ROWS + 1, width).double(), scores(ROWS + 1, width, seed=2).double() + 30
    expected = OF_VALUES[name](target.numpy(), output.numpy())
    assert measure(name, "values", output, target) == pytest.approx(expected, rel=1e-9)


def test_two_classes_have_one_positive_class() -> None:
    output, target = scores(ROWS, 2), classes(ROWS) % 2
    positive = output.softmax(-1)[:, 1].double().numpy()
    assert measure("auroc", "class", output, target) == pytest.approx(reference.roc_auc_score(target, positive))
    expected = reference.average_precision_score(target, positive)
    assert measure("average_precision", "class", output, target) == pytest.approx(expected)


def test_values_at_the_edges() -> None:
    one_class = torch.zeros(9, dtype=torch.int64)
    always = torch.eye(CLASSES)[[0] * 9]
    assert measure("mcc", "class", always, one_class) == 0
    assert measure("balanced_accuracy", "class", always, one_class) == 1
    assert math.isnan(measure("cohen_kappa", "class", always, one_class))
    assert math.isnan(measure("auroc", "class", always, one_class))
    constant = torch.full((9, 1), 2.0, dtype=torch.float64)
    assert measure("explained_variance", "values", constant, constant) == 1
    assert measure("explained_variance", "values", constant + constant.cumsum(0), constant) == 0


def test_top_accuracies_that_are_equal_on_the_first_batch_are_not_merged() -> None:
    metrics = MetricCollection(
        {name: build_named_metric(name, "class", 3, prepare_classes) for name in ("top_1_accuracy", "top_2_accuracy")}
    )
    metrics.update(torch.eye(3), torch.arange(3))
    metrics.update(torch.eye(3) + 2 * torch.eye(3).roll(1, 1), torch.arange(3))
    values = {name: round(float(value), 6) for name, value in metrics.compute().items()}
    assert values == {"top_1_accuracy": 0.5, "top_2_accuracy": 1.0}


def test_directions() -> None:
    better = {
        name: build_named_metric(re.sub("K", "2", name), kinds[0], 3, unchanged).higher_is_better
        for name, kinds in FITS.items()
    }
    assert [name for name, higher in better.items() if not higher] == ["mape", "max_error", "median_absolute_error"]
    assert None not in better.values()
