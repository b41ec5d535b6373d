"""Thresholds and temperatures, compared with all thresholds, a grid of temperatures, scikit-learn and scipy."""

from itertools import pairwise

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn import metrics

from trainer.calibration import (
    calibrate,
    calibration_error,
    class_nll,
    find_label_temperature,
    find_temperature,
    find_threshold,
)


def rows(seed: int, size: int, digits: int) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities, with ties if they have few digits, and which rows are positive."""
    random = np.random.default_rng(seed)
    probabilities = random.random(size).round(digits).astype(np.float32)
    return probabilities, random.random(size) < probabilities**2


def all_thresholds(probabilities: np.ndarray) -> list[float]:
    """Return a threshold for each set of rows that one can predict."""
    values = np.unique(np.append(probabilities, [0.0, 1.0]))
    return [(float(low) + float(high)) / 2 for low, high in pairwise(values)]


def f1(positive: np.ndarray, predicted: np.ndarray) -> float:
    return float(2 * (positive & predicted).sum() / max(1, positive.sum() + predicted.sum()))


@pytest.mark.parametrize("size", [1, 3, 200])
@pytest.mark.parametrize("digits", [1, 7])
def test_no_threshold_has_a_better_f1(size: int, digits: int) -> None:
    for seed in range(8):
        probabilities, positive = rows(seed, size, digits)
        found = find_threshold(probabilities, positive, 0.5)
        scores = [f1(positive, probabilities > np.float32(each)) for each in (0.5, *all_thresholds(probabilities))]
        predicted = probabilities > np.float32(found.value)
        assert 0 <= found.value < 1
        assert found.f1 == pytest.approx(max(scores), abs=1e-12)
        assert found.f1 == pytest.approx(metrics.f1_score(positive, predicted, zero_division=0.0), abs=1e-12)
        assert found.f1_before == pytest.approx(scores[0], abs=1e-12)
        assert found.precision == metrics.precision_score(positive, predicted, zero_division=0.0)
        assert found.recall == metrics.recall_score(positive, predicted, zero_division=0.0)
        assert found.value == 0.5 or found.f1 > scores[0], "the default stays unless another one is better"


@pytest.mark.parametrize("recall", [0.3, 0.9, 1.0])
def test_no_threshold_with_the_recall_has_a_better_precision(recall: float) -> None:
    for seed in range(8):
        probabilities, positive = rows(seed, 60, 2)
        probabilities = np.maximum(probabilities, np.float32(0.01))
        found = find_threshold(probabilities, positive, 0.5, recall)
        right = [positive & (probabilities > each) for each in all_thresholds(probabilities)[:-1]]
        pairs = [
            (each.sum() / (probabilities > threshold).sum(), each.sum() / positive.sum())
            for each, threshold in zip(right, all_thresholds(probabilities), strict=False)
        ]
        assert found.recall >= recall
        assert found.precision == max(precision for precision, reached in pairs if reached >= recall)


def test_a_threshold_stays_without_positives_and_is_near_the_default_between_equals() -> None:
    probabilities = np.array([0.9, 0.7, 0.4, 0.1], dtype=np.float32)
    nothing = find_threshold(probabilities, np.zeros(4, dtype=bool), 0.3)
    assert (nothing.value, nothing.num_positive, nothing.f1) == (0.3, 0, 0.0)
    # One row right out of one, or two out of four, has the same F1: 2/3.
    tied = np.array([True, False, False, True])
    assert find_threshold(probabilities, tied, 0.95).value == 0.8
    assert find_threshold(probabilities, tied, 0.01).value == 0.01


def test_neighboring_and_saturated_probabilities_can_be_told_apart() -> None:
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    found = find_threshold(np.array([low, high, 0.0], dtype=np.float32), np.array([False, True, False]), 0.9)
    assert (found.f1, low > np.float32(found.value), high > np.float32(found.value)) == (1.0, False, True)
    # A probability of 0 is above no threshold, one of 1 above each.
    found = find_threshold(np.array([1.0, 0.0], dtype=np.float32), np.array([True, True]), 0.5)
    assert (found.value, found.recall) == (0.5, 0.5)


def logits_of(seed: int, temperature: float, size: int = 400, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are too large by a factor, and classes that are drawn with the right ones."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(size, classes)) * 2
    drawn = (logits + random.gumbel(size=logits.shape)).argmax(axis=1)
    return (logits * temperature).astype(np.float32), drawn


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 3.0, 40.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_temperature_has_the_smallest_negative_log_likelihood(temperature: float, seed: int) -> None:
    logits, classes = logits_of(seed, temperature)

    def nll(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        return float(-log_softmax(scaled, axis=1)[np.arange(len(classes)), classes].mean())

    found = find_temperature(logits, classes)
    assert found is not None
    best = minimize_scalar(nll, bounds=(-4.6, 4.6), method="bounded", options={"xatol": 1e-9})
    assert np.log(found) == pytest.approx(best.x, abs=1e-5)
    assert nll(np.log(found)) <= min(map(nll, np.linspace(-4.6, 4.6, 300))) + 1e-12
    assert nll(np.log(found)) == pytest.approx(class_nll(logits / np.float64(found), classes), abs=1e-12)
    assert found == pytest.approx(temperature, rel=0.2)


def test_a_label_has_the_temperature_of_two_classes() -> None:
    logits, classes = logits_of(0, 2.5, classes=2)
    difference = logits[:, 1].astype(np.float64) - logits[:, 0]

    assert find_label_temperature(difference, classes > 0) == pytest.approx(find_temperature(logits, classes), rel=1e-9)


@pytest.mark.parametrize(
    ("logits", "classes"),
    [
        ([[2.0, 0.0], [0.0, 1.0]], [0, 1]),  # all right: the likelihood only rises
        ([[2.0, 0.0], [0.0, 1.0]], [1, 0]),  # all wrong
        ([[0.0, 0.0]], [0]),  # no difference
    ],
)
def test_there_may_be_no_best_temperature(logits: list[list[float]], classes: list[int]) -> None:
    assert find_temperature(np.array(logits), np.array(classes)) is None


@pytest.mark.parametrize("several", [False, True])
def test_calibration_lowers_the_likelihood_and_the_error_of_overconfident_logits(several: bool) -> None:
    logits, targets = logits_of(1, 4.0, size=2000)
    if several:
        random = np.random.default_rng(0)
        targets = random.random(logits.shape) < 1 / (1 + np.exp(-logits / 4))
    found = calibrate(logits, targets, ["a", "b", "c", "d"], several=several)

    assert not found.unfit
    assert found.nll < found.nll_before
    assert found.error < found.error_before / 2


def test_labels_without_a_best_temperature_keep_1() -> None:
    logits = np.array([[3.0, 1.0], [-2.0, 2.0], [1.0, -1.0], [-1.0, 0.5]])
    targets = np.array([[1, 0], [0, 0], [0, 0], [0, 0]])
    found = calibrate(logits, targets, ["a", "b"], several=True)

    assert isinstance(found.temperature, dict)
    assert (found.unfit, found.temperature["b"]) == (["b"], 1.0)
    assert calibrate(logits[:, 1:], targets[:, 1:], ["b"], several=True).temperature is None


def test_calibration_error_is_that_of_15_bins() -> None:
    random = np.random.default_rng(0)
    probabilities = np.append(random.random(500), [0.0, 1.0, 1 / 15, 2 / 3])
    right = random.random(len(probabilities)) < 0.5
    expected = 0.0
    for number in range(15):
        low, high = number / 15, (number + 1) / 15
        inside = (probabilities > low) & (probabilities <= high) | ((number == 0) & (probabilities == 0))
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - probabilities[inside].mean())

    assert calibration_error(probabilities, right) == pytest.approx(expected, abs=1e-9)
