"""Statistics of predictions, against other ways to compute them."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support

from tests.support.stored_predictions import write_predictions
from trainer.report.statistics import (
    count_classes,
    count_entities,
    count_labels,
    find_entities,
    find_worst,
    measure_baseline,
    measure_calibration,
)
from trainer.task.entities import entity_spans

TAGS = ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "PER"]


def test_scores_of_classes_equal_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    names = ["a", "b", "c", "never"]
    targets, predictions = (random.choice(names[:3], 200).tolist() for _ in range(2))
    confusion = count_classes([*targets, None], [*predictions, "a"], names)
    expected = precision_recall_fscore_support(targets, predictions, labels=names, zero_division=np.nan)

    for own, other in zip((*confusion.scores(), confusion.support), expected, strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-12)
    matrix = np.array(confusion.matrix())
    assert matrix.sum() == 200
    assert (matrix.sum(axis=1) == confusion.support).all()
    assert (matrix.sum(axis=0) == confusion.predicted).all()
    wrong = matrix[~np.eye(4, dtype=bool)]
    assert [count for _, _, count in confusion.pairs] == sorted(wrong[wrong > 0].tolist(), reverse=True)


def test_labels_are_counted_one_by_one() -> None:
    confusion = count_labels([["a", "b"], [], ["b"], None], [["a"], ["a"], ["b", "c"], ["c"]], ["a", "b", "c"])

    assert confusion.support.tolist() == [1, 2, 0]
    assert confusion.predicted.tolist() == [2, 1, 1]  # the row without a target is left out
    assert confusion.right.tolist() == [1, 1, 0]


@given(st.lists(st.sampled_from(TAGS), min_size=1, max_size=12))
def test_entities_are_those_of_the_metric(tags: list[str]) -> None:
    expected = {(span["type"], span["start"], int(span["end"]) - 1) for span in entity_spans(tags)}

    assert find_entities(tags) == expected


def test_an_entity_is_right_if_all_of_it_is() -> None:
    target = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC"]]
    answer = [["B-PER", "O", "O", "B-LOC"], ["B-PER"]]
    confusion = count_entities(target, answer)

    assert confusion.names == ["LOC", "PER"]
    assert confusion.support.tolist() == [2, 1]
    assert confusion.predicted.tolist() == [1, 2]
    assert confusion.right.tolist() == [1, 0]


def test_calibration_error_is_that_of_its_definition(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    probabilities = random.dirichlet([0.5] * 3, size=10_000).astype(np.float32)
    names = ["a", "b", "c"]
    predictions = [names[index] for index in probabilities.argmax(axis=1)]
    targets = random.choice(names, len(predictions)).tolist()
    file = write_predictions(
        tmp_path, "class", classes=names, target=targets, prediction=predictions, probabilities=probabilities.tolist()
    )
    calibration = measure_calibration(file, "class", names)

    confidence, right = probabilities.max(axis=1).astype(float), np.equal(targets, predictions)
    edges = np.arange(16) / 15
    parts = [(confidence >= low) & (confidence < high) for low, high in pairwise(edges)]
    expected = sum(abs(confidence[part].mean() - right[part].mean()) * part.mean() for part in parts if part.any())
    assert calibration is not None
    assert calibration.counts.sum() == 10_000
    assert calibration.error == pytest.approx(expected, abs=1e-9)


def test_probabilities_of_labels_are_compared_with_their_shares(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {
        "target": [["a"], [], ["a"], ["a"]],
        "prediction": [["a"]] * 4,
        "probabilities": [[0.75, 0.01]] * 4,
    }
    file = write_predictions(tmp_path, "labels", classes=["a", "b"], **rows)
    calibration = measure_calibration(file, "labels", ["a", "b"])

    assert calibration is not None
    assert calibration.counts.tolist() == [4.0, *[0.0] * 10, 4.0, *[0.0] * 3]
    assert (calibration.accuracy[0], calibration.accuracy[11]) == (0.0, 0.75)
    assert calibration.error == pytest.approx(0.005, abs=1e-6)
    assert measure_calibration(file, "labels", ["a"]) is None


def test_baselines_are_the_simplest_answers(tmp_path: Path) -> None:
    classes = write_predictions(tmp_path / "c", "class", target=["a", "b", "b", "b", None], prediction=["a"] * 5)
    baseline = measure_baseline(classes, "class", ["a", "b"])
    assert baseline is not None
    assert baseline.answer == "always answering b, the commonest here"
    assert baseline.scores == {"accuracy": 0.75, "macro_f1": pytest.approx((0 + 2 * 0.75 / 1.75) / 2)}

    numbers = write_predictions(tmp_path / "n", "values", target=[1.0, 2.0, 6.0], prediction=[0.0] * 3)
    baseline = measure_baseline(numbers, "values", None)
    assert baseline is not None
    assert baseline.scores["mae"] == pytest.approx(2.0)
    assert baseline.scores["rmse"] == pytest.approx(np.sqrt(14 / 3))
    assert baseline.scores["r2"] == 0.0

    tags = write_predictions(tmp_path / "t", "tags", target=[["O", "O"], ["B-X", "O"]], prediction=[["O"] * 2] * 2)
    baseline = measure_baseline(tags, "tags", None)
    assert baseline is not None
    assert baseline.scores == {"accuracy": 0.75}


def test_worst_rows_have_the_largest_losses(tmp_path: Path) -> None:
    count = 9_000  # of several batches
    losses = np.random.default_rng(2).permutation(count).astype(float).tolist()
    losses[17] = None
    file = write_predictions(
        tmp_path, "class", target=["a"] * count, prediction=["a"] * count, loss=losses, file=["x.csv"] * count
    )
    worst = find_worst(file, "class", 20)

    known = [(-1.0 if loss is None else loss, row) for row, loss in enumerate(losses)]
    assert [row["row"] for row in worst] == [row for _, row in sorted(known, reverse=True)[:20]]
    assert worst[0]["file"] == "x.csv"


def test_without_losses_the_worst_rows_are_the_farthest_and_the_surest(tmp_path: Path) -> None:
    numbers = write_predictions(tmp_path / "n", "values", target=[1.0, 2.0, 3.0], prediction=[1.5, 9.0, 3.0])
    assert [row["row"] for row in find_worst(numbers, "values", 2)] == [1, 0]

    probabilities = [[0.6, 0.4], [0.9, 0.1], [0.8, 0.2]]
    classes = write_predictions(
        tmp_path / "c", "class", target=["b", "a", "b"], prediction=["a"] * 3, probabilities=probabilities
    )
    worst = find_worst(classes, "class", 5)
    assert [row["row"] for row in worst] == [2, 0]
    assert worst[0]["confidence"] == pytest.approx(0.8)


def test_probabilities_that_are_nan_are_left_out(tmp_path: Path) -> None:
    """Half precision may overflow."""
    nan = float("nan")
    columns = {"target": ["a", "a"], "prediction": ["a", "a"], "probabilities": [[nan, nan], [0.9, 0.1]]}
    calibration = measure_calibration(
        write_predictions(tmp_path, "class", classes=["a", "b"], **columns), "class", None
    )
    assert calibration is not None
    assert calibration.counts.sum() == 1
    assert calibration.error == pytest.approx(0.1)
