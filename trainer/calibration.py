"""Thresholds and temperatures that are best on a validation split, and the error of probabilities.

Outputs are logits (N, C). Targets are classes (N,), or labels of 0 and 1 (N, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

_ECE_BINS: Final = 15
_LIMIT: Final = 100.0
"""A temperature is between 1 / 100 and 100."""

_MAX_STEPS: Final = 100
_TOLERANCE: Final = 1e-12
_MAX_DIGITS: Final = 9

Gradient = Callable[[float], tuple[float, float]]
"""First and second derivative of the negative log-likelihood by the inverse temperature."""


@dataclass(frozen=True)
class Threshold:
    """A threshold with its result on the rows that it was found on.

    Attributes:
        value: A row is predicted if its probability is above this value.
        num_positive: Rows with the label.
        f1_before: F1 at the threshold that the task has without a rule.
        f1: F1 at this one; both are 0 if no row has the label.
        precision: Share of the predicted rows that have the label; 0 if none is predicted.
        recall: Share of the rows with the label that are predicted.
    """

    value: float
    num_positive: int
    f1_before: float
    f1: float
    precision: float
    recall: float


def find_threshold(
    probabilities: np.ndarray, positive: np.ndarray, default: float, least_recall: float | None = None
) -> Threshold:
    """Return the threshold with the best F1, or with the best precision of those with a recall.

    The threshold is between two neighboring probabilities. `default` stays if no other threshold is better, or if no
    row is positive; of several equally good ones, the nearest to it is taken.

    Args:
        probabilities: float32 (N,).
        positive: True for rows that have the label, (N,).
        default: The threshold that the task has without a rule.
        least_recall: The smallest recall, in (0, 1]; None for the best F1.
    """
    actual = int(positive.sum())
    is_predicted = probabilities > np.float32(default)
    own = np.array([(is_predicted & positive).sum()]), np.array([is_predicted.sum()])
    before = float(_f1(*own, actual)[0])
    (right,), (predicted,), value = *own, default
    if actual:
        order = np.argsort(-probabilities, kind="stable")
        values, counts = np.unique(probabilities[probabilities > 0], return_counts=True)
        values, counts = values[::-1], counts[::-1].cumsum()
        hits = positive[order].cumsum()[counts - 1]
        first, second = _goals(hits, counts, actual, least_recall)
        tied = np.flatnonzero(first == first.max(initial=0))
        tied = tied[second[tied] == second[tied].max(initial=0)]
        mine = _goals(*own, actual, least_recall)
        if len(tied) and (mine[0][0], mine[1][0]) < (first[tied[0]], second[tied[0]]):
            lower = np.append(values[1:], np.float32(0))
            place = tied[np.abs((lower[tied] + values[tied]) / 2 - default).argmin()]
            right, predicted, value = hits[place], counts[place], _between(lower[place], values[place])
    return Threshold(
        value,
        actual,
        before,
        float(_f1(np.array(right), np.array(predicted), actual)),
        float(right / max(1, predicted)),
        float(right / max(1, actual)),
    )


def _f1(right: np.ndarray, predicted: np.ndarray, actual: int) -> np.ndarray:
    scores: np.ndarray = 2 * right / np.maximum(1, predicted + actual)
    return scores


def _goals(
    right: np.ndarray, predicted: np.ndarray, actual: int, least_recall: float | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return two numbers for each threshold: the better one has the larger first, or equal ones and a larger second."""
    if least_recall is None:
        return _f1(right, predicted, actual), np.zeros(len(right))
    precision = right / np.maximum(1, predicted)
    return np.where(right >= least_recall * actual - 1e-9, precision, -1.0), right / actual


def _between(low: np.float32, high: np.float32) -> float:
    """Return the number with the fewest digits in the middle half between two probabilities, at least `low`."""
    lower, upper = float(low), float(high)
    middle, quarter = (lower + upper) / 2, (upper - lower) / 4
    for digits in range(1, _MAX_DIGITS):
        value = round(middle, digits)
        if middle - quarter <= value <= middle + quarter and lower < np.float32(value) < upper:
            return value
    value = float(np.float32(middle))
    return value if value < upper else lower  # neighboring numbers in float32 have no middle


def find_thresholds(
    probabilities: np.ndarray, positive: np.ndarray, default: float, least_recall: float | None = None
) -> list[Threshold]:
    """Return the threshold of each label, see `find_threshold`, for probabilities and positives (N, C)."""
    columns = zip(probabilities.T, positive.T, strict=True)
    return [find_threshold(*column, default, least_recall) for column in columns]


@dataclass(frozen=True)
class Calibration:
    """A temperature with its result on the rows that it was found on.

    Attributes:
        temperature: The temperature, or one for each label; None if none is best.
        unfit: Labels for which no temperature is best, so that it is 1; `all classes` for the only temperature.
        nll_before: Mean negative log-likelihood at a temperature of 1.
        nll: The same at this temperature.
        error_before: Expected calibration error at a temperature of 1.
        error: The same at this temperature.
    """

    temperature: float | dict[str, float] | None
    unfit: list[str]
    nll_before: float
    nll: float
    error_before: float
    error: float


def calibrate(logits: np.ndarray, targets: np.ndarray, labels: Sequence[str], *, several: bool) -> Calibration:
    """Find the temperature with the smallest negative log-likelihood: of classes, or of each label of several."""
    temperature: float | dict[str, float] | None
    nll, error = (label_nll, label_error) if several else (class_nll, class_error)
    if several:
        temperatures = [find_label_temperature(*column) for column in zip(logits.T, targets.T > 0, strict=True)]
        temperature = {label: value or 1.0 for label, value in zip(labels, temperatures, strict=True)}
        unfit = [label for label, value in zip(labels, temperatures, strict=True) if value is None]
        scaled = logits / np.array(list(temperature.values()))
    else:
        temperature = find_temperature(logits, targets)
        unfit = ["all classes"] if temperature is None else []
        scaled = logits / (temperature or 1.0)
    return Calibration(
        temperature if len(unfit) < len(labels) else None,
        unfit,
        nll(logits, targets),
        nll(scaled, targets),
        error(logits, targets),
        error(scaled, targets),
    )


def find_temperature(logits: np.ndarray, classes: np.ndarray) -> float | None:
    """Return the temperature with the smallest negative log-likelihood of classes (N,).

    None if it is not between 1 / 100 and 100, as if all rows are classified right: the likelihood then only rises.
    """
    logits = logits.astype(np.float64)
    own = np.take_along_axis(logits, classes[:, None], axis=1)[:, 0]

    def derivatives(inverse: float) -> tuple[float, float]:
        probabilities = _softmax(logits * inverse)
        mean = (probabilities * logits).sum(axis=1)
        variance = (probabilities * (logits - mean[:, None]) ** 2).sum(axis=1)
        return float((mean - own).mean()), float(variance.mean())

    return _solve(derivatives)


def find_label_temperature(logits: np.ndarray, positive: np.ndarray) -> float | None:
    """Return the temperature of one label of several, as `find_temperature`: the sigmoid's, for logits (N,)."""
    zeros = np.zeros_like(logits)
    return find_temperature(np.stack([zeros, logits], axis=1), positive.astype(np.int64))


def _solve(derivatives: Gradient) -> float | None:
    """Return the temperature at which the first derivative, which rises with the inverse temperature, is 0."""
    low, high = 1 / _LIMIT, _LIMIT
    if derivatives(low)[0] >= 0 or derivatives(high)[0] <= 0:
        return None
    inverse = 1.0
    for _ in range(_MAX_STEPS):
        slope, curvature = derivatives(inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        following = inverse - slope / curvature if curvature > 0 else low
        if not low < following < high:  # Newton's method would leave the interval of the root
            following = (low * high) ** 0.5
        if abs(following - inverse) <= _TOLERANCE * inverse:
            break
        inverse = following
    return 1 / inverse


def class_nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean negative log-likelihood of targets (N,)."""
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=1, keepdims=True)
    own = np.take_along_axis(shifted, targets[:, None], axis=1)[:, 0]
    return float((np.log(np.exp(shifted).sum(axis=1)) - own).mean())


def label_nll(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean negative log-likelihood of targets (N, C) of 0 and 1."""
    logits = logits.astype(np.float64)
    return float((np.logaddexp(0, logits) - targets * logits).mean())


def class_error(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the expected calibration error of the most likely class, with 15 bins of equal width.

    Source: Guo et al. 2017, equation 3.
    """
    probabilities = _softmax(logits.astype(np.float64))
    return calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == targets)


def label_error(logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the expected calibration error of the probabilities of all labels (N, C) together."""
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    return calibration_error(probabilities.ravel(), targets.ravel() > 0)


def calibration_error(probabilities: np.ndarray, is_right: np.ndarray) -> float:
    """Return the mean over bins of |share that is right - mean probability|, weighted by the rows of a bin."""
    bins = np.clip(np.ceil(probabilities * _ECE_BINS).astype(np.int64) - 1, 0, _ECE_BINS - 1)
    gaps = np.bincount(bins, is_right - probabilities, minlength=_ECE_BINS)
    return float(np.abs(gaps).sum() / len(probabilities))


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=1, keepdims=True)
    return probabilities
