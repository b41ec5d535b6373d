"""Scores of classes from three counts: of each class's targets that were predicted, its predictions, its targets.

Each count is float64 (..., C), the score float64 (...): one evaluation, or all draws of a bootstrap at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np

ClassScore = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

LabelScore = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""A score of sets of labels, which also gets the number of rows."""


def balanced_accuracy(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return the recall of each class, averaged over the classes that are targets."""
    return _mean_ratio(right, actual, actual > 0)


def macro_f1(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return the F1 of each class, averaged over the classes that occur."""
    return _mean_ratio(right, (predicted + actual) / 2, predicted + actual > 0)


def macro_precision(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return the precision of each class, averaged over the classes that occur; 0 if a class is never predicted."""
    return _mean_ratio(right, predicted, predicted + actual > 0)


def macro_recall(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return the recall of each class, averaged over the classes that occur; 0 if a class is never a target."""
    return _mean_ratio(right, actual, predicted + actual > 0)


def _mean_ratio(right: np.ndarray, total: np.ndarray, occurs: np.ndarray) -> np.ndarray:
    ratios = np.where(total > 0, right / np.where(total > 0, total, 1), 0)
    mean: np.ndarray = ratios.sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1)
    return mean


def weighted_f1(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return the F1 of each class, averaged with the number of its targets as weight."""
    scores = 2 * right / np.maximum(predicted + actual, 1)
    mean: np.ndarray = (scores * actual).sum(axis=-1) / np.maximum(actual.sum(axis=-1), 1)
    return mean


def mcc(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation coefficient of several classes; 0 if all predictions or all targets are one class.

    Source: Gorodkin 2004, "Comparing two K-category assignments by a K-category correlation coefficient".
    """
    total = actual.sum(axis=-1)
    covariance = right.sum(axis=-1) * total - (predicted * actual).sum(axis=-1)
    spread = (total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (actual**2).sum(axis=-1))
    coefficient: np.ndarray = np.where(spread > 0, covariance / np.sqrt(np.where(spread > 0, spread, 1)), 0)
    return coefficient


def cohen_kappa(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Return Cohen's kappa: agreement beyond chance; NaN if predictions and targets are all one class.

    Source: Cohen 1960, "A coefficient of agreement for nominal scales".
    """
    total, chance = actual.sum(axis=-1), (predicted * actual).sum(axis=-1)
    rest = total**2 - chance
    kappa: np.ndarray = np.where(rest > 0, (right.sum(axis=-1) * total - chance) / np.where(rest > 0, rest, 1), np.nan)
    return kappa


CLASS_SCORES: Final = {
    "balanced_accuracy": balanced_accuracy,
    "cohen_kappa": cohen_kappa,
    "macro_precision": macro_precision,
    "macro_recall": macro_recall,
    "mcc": mcc,
    "weighted_f1": weighted_f1,
}
"""The scores by the name of their metric."""


# Sets of labels: the counts of each label, and the number of rows


def _of_labels(average: str, score: str) -> LabelScore:
    """Return a score of labels that is averaged in a way; a label whose divisor is 0 counts as 0."""

    def label_score(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray, _: np.ndarray) -> np.ndarray:
        total = {"f1": (predicted + actual) / 2, "precision": predicted, "recall": actual}[score]
        if average == "micro":
            right, total = right.sum(axis=-1), total.sum(axis=-1)
            return np.where(total > 0, right / np.where(total > 0, total, 1), 0)
        scores = np.where(total > 0, right / np.where(total > 0, total, 1), 0)
        weights = actual if average == "weighted" else np.ones(scores.shape)
        mean: np.ndarray = (scores * weights).sum(axis=-1) / np.maximum(weights.sum(axis=-1), 1)
        return mean

    return label_score


def label_mcc(right: np.ndarray, predicted: np.ndarray, actual: np.ndarray, num_rows: np.ndarray) -> np.ndarray:
    """Return Matthews' correlation coefficient of all pairs of a row and a label."""
    pairs = num_rows * right.shape[-1]
    hits, guesses, positives = (each.sum(axis=-1) for each in (right, predicted, actual))
    counts = ([pairs - guesses - positives + hits, hits], [pairs - guesses, guesses], [pairs - positives, positives])
    return mcc(*(np.stack(each, axis=-1) for each in counts))


LABEL_SCORES: Final[Mapping[str, LabelScore]] = {
    "mcc": label_mcc,
    **{
        f"{average}_{score}": _of_labels(average, score)
        for average in ("micro", "macro", "weighted")
        for score in ("f1", "precision", "recall")
    },
}
"""The scores of sets of labels by the name of their metric."""
