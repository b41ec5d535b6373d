"""Likely wrong labels, contradictions and hard rows, from predictions of models that were not trained on the rows.

Confident learning: C. Northcutt, L. Jiang and I. Chuang, Confident Learning: Estimating Uncertainty in Dataset Labels,
Journal of Artificial Intelligence Research 70 (2021). A row counts as confident in a class if its probability is at
least the mean probability of that class among the rows that have its label. Rows that are confident in another class
than their label are likely wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def find_label_errors(targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which rows have a likely wrong label, and the class that each row is more likely to have.

    Args:
        targets (N,): The labels.
        probabilities (N, C): The probability of each class, from a model that was not trained on the row.

    Returns:
        is_wrong (N,) and suggested (N,): of the classes in which a row is confident, the most likely one; the most
        likely class other than the label if there is none.
    """
    num_classes = probabilities.shape[1]
    thresholds = np.full(num_classes, np.inf)
    for label in np.unique(targets):
        thresholds[label] = probabilities[targets == label, label].mean()
    confident = probabilities >= thresholds
    best = np.where(confident, probabilities, -1.0).argmax(axis=1)
    is_wrong = confident.any(axis=1) & (best != targets)
    others = probabilities.copy()
    others[np.arange(len(targets)), targets] = -1.0
    return is_wrong, np.where(is_wrong, best, others.argmax(axis=1))


def find_contradictions(targets: np.ndarray, digests: Sequence[int | None]) -> np.ndarray:
    """Return which rows have the same inputs as a row with another label, (N,).

    Args:
        targets (N,): The labels.
        digests: The digest of the inputs of each row; None if it is unknown.
    """
    labels: dict[int | None, set[int]] = {}
    for digest, target in zip(digests, targets.tolist(), strict=True):
        labels.setdefault(digest, set()).add(target)
    return np.array([digest is not None and len(labels[digest]) > 1 for digest in digests], dtype=bool)


def rank_rows(targets: np.ndarray, probabilities: np.ndarray, reasons: np.ndarray) -> np.ndarray:
    """Return the positions of all rows: by `reasons` (N,), the lowest first, then by their margin, the worst first.

    The margin is the label's probability less the most likely other class's; equal margins keep the order of
    the rows.
    """
    rows = np.arange(len(targets))
    others = probabilities.copy()
    others[rows, targets] = -1.0
    margin = probabilities[rows, targets] - others.max(axis=1)
    return np.lexsort((rows, margin, reasons))
