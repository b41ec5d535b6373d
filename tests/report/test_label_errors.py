"""Likely wrong labels by confident learning."""

import numpy as np

from trainer.report.label_errors import find_contradictions, find_label_errors, rank_rows


def test_a_row_that_is_confident_in_another_class_is_likely_wrong() -> None:
    # Thresholds: the mean of the first column over the rows of class 0, 0.6; of the second over class 1, 0.625.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.35, 0.65], [0.4, 0.6]])
    targets = np.array([0, 0, 0, 1, 1])
    is_wrong, suggested = find_label_errors(targets, probabilities)
    assert is_wrong.tolist() == [False, False, True, False, False]
    assert suggested.tolist() == [1, 1, 1, 0, 0]
    assert rank_rows(targets, probabilities, ~is_wrong).tolist() == [2, 4, 3, 1, 0]


def test_a_row_below_every_threshold_is_not_flagged() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.45, 0.55], [0.1, 0.9]])
    is_wrong, suggested = find_label_errors(np.array([0, 0, 0, 1]), probabilities)
    assert is_wrong.tolist() == [False] * 4
    assert suggested[2] == 1


def test_equal_inputs_with_different_labels_are_contradictions() -> None:
    targets = np.array([0, 1, 0, 0, 1, 2, 2])
    digests = [7, 7, 7, 8, None, None, 9]
    assert find_contradictions(targets, digests).tolist() == [True] * 3 + [False] * 4


def test_planted_errors_come_first() -> None:
    random = np.random.default_rng(0)
    truth = random.integers(0, 10, 4000)
    scores = random.normal(size=(4000, 10))
    scores[np.arange(4000), truth] += 3
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    planted = random.random(4000) < 0.05
    targets = np.where(planted, (truth + random.integers(1, 10, 4000)) % 10, truth)
    is_wrong, suggested = find_label_errors(targets, probabilities)
    first = rank_rows(targets, probabilities, ~is_wrong)[: 2 * planted.sum()]
    assert planted[first].sum() >= 0.8 * planted.sum()
    assert (suggested[planted & is_wrong] == truth[planted & is_wrong]).mean() > 0.9
