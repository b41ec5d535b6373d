"""Intervals: the estimates equal the metrics, and the draws those of scipy's bootstrap and of closed forms."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from sklearn.metrics import average_precision_score, explained_variance_score, r2_score, roc_auc_score
from torch import Tensor

from tests.test_row_recorder import CASES, metric_kind, record
from trainer.calibration import calibration_error
from trainer.intervals.confidence import (
    draw_estimates,
    fitting_estimates,
    jackknife_interval,
    metric_intervals,
    paired_intervals,
    quantile_interval,
)
from trainer.intervals.estimates import estimate_again, make_estimates, metric_arguments
from trainer.intervals.rank_estimates import AVERAGE_PRECISION, MEDIAN_ERROR, ROC_AREA, SPEARMAN, estimate_ranked
from trainer.intervals.resampling import MAX_UNITS, NUM_DRAWS, Units
from trainer.predictions import format_span, predictions_schema
from trainer.report.statistics import count_spans
from trainer.row_recorder import prediction_kind
from trainer.task.embedding_metrics import mean_closeness, uniformity
from trainer.task.named_metrics import FITS, build_named_metric, prepare_classes, prepare_labels


def table_of(kind: Any, columns: dict[str, Any], *, several_values: bool = False) -> pa.Table:
    count = len(next(iter(columns.values())))
    rows: dict[str, Any] = {"loss": [1.0] * count, "num_targets": [1] * count, **columns}
    schema = predictions_schema(kind, several_values=several_values, about={})
    return pa.table([pa.array(rows.get(field.name, [None] * count), field.type) for field in schema], schema=schema)


def classes_of(codes: np.ndarray) -> list[str]:
    return [f"c{code}" for code in codes]


@pytest.mark.parametrize("name", list(CASES))
def test_every_metric_of_a_task_has_an_interval_around_it(name: str) -> None:
    case = CASES[name]
    if name in ("masked", "causal"):  # perplexity is computed from the cross entropy without smoothing
        case = case._replace(loss=type(case.loss)(None, 0.0, -100))  # type: ignore[call-arg]
    task, table, values = record(case, "packed")
    about = {"kind": prediction_kind(task), "classes": task.info().class_names}
    intervals, missing = metric_intervals(table, about, values)
    assert missing.keys() == ({"loss"} if name in ("pairs", "triplets", "alone") else set()), missing
    assert intervals.keys() == values.keys() - missing.keys()
    for metric, (low, high) in intervals.items():
        assert low <= values[metric] + 1e-6
        assert high >= values[metric] - 1e-6
        assert high - low < 10 * max(1.0, abs(values[metric]))


@pytest.mark.parametrize("name", ["class", "labels", "tags", "spans", "values", "masked", "causal"])
def test_every_named_metric_has_an_interval_or_a_reason(name: str) -> None:
    kind = {"class": "class", "labels": "multi_hot", "tags": "tags", "spans": "spans", "values": "values"}.get(
        name, "tokens"
    )
    names = sorted(each.replace("K", "2") for each, kinds in FITS.items() if kind in kinds)
    task, table, values = record(CASES[name], "packed", names=names)
    about = {"kind": prediction_kind(task), "classes": task.info().class_names}
    intervals = metric_intervals(table, about, values)
    assert metric_kind(task) == kind
    assert intervals.by_name.keys() | intervals.missing.keys() == values.keys() >= {*names}
    unkept = "the predictions do not contain what it is computed from"
    largest = "the largest error of drawn rows says nothing about the errors of other rows"
    expected = {"values": {"max_error": largest}, "tags": {"top_2_accuracy": unkept}}
    expected["tokens"] = {"top_2_accuracy": unkept, "perplexity": unkept}  # the loss is smoothed
    ends = "in all draws of the rows", "whichever row is left out"
    constant = {name for name, reason in intervals.missing.items() if reason.endswith(ends)}
    assert {name: each for name, each in intervals.missing.items() if name not in constant} == expected.get(kind, {})


def resampled(table: pa.Table, about: dict[str, Any], metric: str, reference: Callable[[np.ndarray], float]) -> None:
    """Check a metric in some draws against its value on the rows that were drawn, one by one."""
    units = Units.for_rows(len(table))
    estimate = make_estimates(table, about, units)[metric]
    counts = next(units.draws())[:5]
    with np.errstate(all="ignore"):
        values = estimate(counts)
    for drawn, value in zip(counts, values, strict=True):
        rows = np.repeat(np.arange(len(table)), drawn.astype(int))
        assert value == pytest.approx(reference(rows), abs=1e-6), metric


def test_draws_of_class_metrics_are_those_of_the_drawn_rows() -> None:
    from torchmetrics.classification import MulticlassF1Score

    random = np.random.default_rng(0)
    target, predicted = random.integers(0, 5, 40), random.integers(0, 4, 40)
    table = table_of("class", {"target": classes_of(target), "prediction": classes_of(predicted)})
    about = {"kind": "class", "classes": [f"c{code}" for code in range(6)]}
    f1 = MulticlassF1Score(6, average="macro")
    resampled(table, about, "accuracy", lambda rows: float((target == predicted)[rows].mean()))
    resampled(
        table, about, "macro_f1", lambda rows: f1(torch.tensor(predicted[rows]), torch.tensor(target[rows])).item()
    )


def test_draws_of_label_metrics_are_those_of_the_drawn_rows() -> None:
    from trainer.task.classification_metrics import decide_labels, multilabel_metrics

    random = np.random.default_rng(1)
    target = random.random((40, 4)) < [0.5, 0.2, 0.05, 0.0]
    scores = random.normal(size=(40, 4)).round(1) + target
    names = ["a", "b", "c", "d"]
    columns = {
        "target": [[names[i] for i in np.flatnonzero(row)] for row in target],
        "prediction": [[names[i] for i in np.flatnonzero(row > 0)] for row in scores],
        "probabilities": 1 / (1 + np.exp(-scores)),
    }
    table = table_of("labels", columns | {"probabilities": list(columns["probabilities"])})

    def reference(metric: str, rows: np.ndarray) -> float:
        metrics = multilabel_metrics(4, partial(decide_labels, threshold=0.5))
        metrics.update(torch.tensor(scores[rows]).float(), torch.tensor(target[rows]).float())
        return metrics.compute()[metric].item()

    for metric in ("micro_f1", "macro_f1", "exact_match", "mean_average_precision"):
        about = {"kind": "labels", "classes": names}
        resampled(table, about, metric, lambda rows, metric=metric: reference(metric, rows))


def test_draws_of_number_metrics_are_those_of_the_drawn_rows() -> None:
    from trainer.task.regression_metrics import regression_metrics

    random = np.random.default_rng(2)
    target = random.normal(1e4, 1.0, (40, 2)).round(1)
    predicted = (target + random.normal(0, 1.0, (40, 2))).round(1)
    table = table_of("values", {"target": list(target), "prediction": list(predicted)}, several_values=True)

    def reference(metric: str, rows: np.ndarray) -> float:
        metrics = regression_metrics([1.0, 1.0])
        metrics.update(*(torch.tensor(each[rows]) for each in (predicted, target)))
        return metrics.compute()[metric].item()

    for metric in ("mae", "rmse", "r2", "pearson", "spearman"):
        resampled(table, {"kind": "values"}, metric, lambda rows, metric=metric: reference(metric, rows))


def test_draws_of_equal_targets_explain_nothing() -> None:
    table = table_of("values", {"target": [1.0, 1.0, 1.0, 3.0], "prediction": [1.5, 1.0, 1.5, 2.5]})
    units = Units.for_rows(4)
    estimates = make_estimates(table, {"kind": "values"}, units)
    counts = np.array([[2.0, 1, 1, 0], [0, 4, 0, 0], [1, 1, 1, 1]])
    for name, reference in (("r2", r2_score), ("explained_variance", explained_variance_score)):
        expected = []
        for drawn in counts.astype(int):
            target, predicted = (np.repeat(table[key].to_numpy(), drawn) for key in ("target", "prediction"))
            expected.append(reference(target, predicted))
        assert estimates[name](counts) == pytest.approx(expected)


def test_draws_of_tag_metrics_are_those_of_the_drawn_rows() -> None:
    from trainer.task.classification_metrics import ClassCounts, EntityScore, f1_of_tags

    random = np.random.default_rng(3)
    names = ["B-x", "I-x", "B-y", "O"]
    lengths = random.integers(0, 9, 40)
    tags = [(random.integers(0, 4, length), random.integers(0, 4, length)) for length in lengths]
    columns: dict[str, Any] = {
        "target": [[names[i] for i in target] for target, _ in tags],
        "prediction": [[names[i] for i in predicted] for _, predicted in tags],
        "num_targets": lengths,
        "num_right": [int((target == predicted).sum()) for target, predicted in tags],
    }

    def reference(metric: Any, rows: np.ndarray) -> float:
        for row in rows:
            target, predicted = (torch.from_numpy(each)[None] for each in tags[row])
            metric.update(torch.nn.functional.one_hot(predicted, 4).float(), target)
        value: Tensor = metric.compute()
        return value.item()

    about = {"kind": "tags", "classes": names}
    table = table_of("tags", columns)
    for score in ("f1", "precision", "recall"):
        resampled(table, about, f"entity_{score}", lambda rows, score=score: reference(EntityScore(names, score), rows))
    resampled(table, about, "macro_f1", lambda rows: reference(ClassCounts(4, f1_of_tags), rows))


def test_draws_of_span_metrics_are_those_of_the_drawn_rows() -> None:
    random = np.random.default_rng(4)
    names = ["LOC", "a:b"]
    spans = np.array([format_span(first, first + 1, name) for first in range(4) for name in names])
    rows = [[sorted(spans[random.random(8) < share]) for share in (0.4, 0.5)] for _ in range(40)]
    columns: dict[str, Any] = {"target": [row[0] for row in rows], "prediction": [row[1] for row in rows]}

    def f1(drawn: np.ndarray, name: str = "") -> float:
        kept = [[{each for each in part if each.endswith(name)} for part in rows[row]] for row in drawn]
        return 2 * sum(len(one & other) for one, other in kept) / sum(len(one) + len(other) for one, other in kept)

    about = {"kind": "spans", "classes": names}
    table = table_of("spans", columns)
    resampled(table, about, "entity_f1", f1)
    resampled(table, about, "macro_f1", lambda drawn: (f1(drawn, "LOC") + f1(drawn, "a:b")) / 2)
    assert class_scores_of_spans(rows) == pytest.approx([f1(np.arange(40), name) for name in names])


def class_scores_of_spans(rows: list[Any]) -> list[float]:
    """Return F1 of each label, as the report shows it."""
    confusion = count_spans([row[0] for row in rows], [row[1] for row in rows])
    scores: list[float] = confusion.scores()[2].tolist()
    return scores


@pytest.mark.parametrize("num_classes", [2, 4])
def test_draws_of_named_metrics_of_classes_are_those_of_the_drawn_rows(num_classes: int) -> None:
    random = np.random.default_rng(5)
    target = random.integers(0, num_classes, 60)
    scores = random.normal(size=(60, num_classes)) + np.eye(num_classes)[target]
    names = [f"c{code}" for code in range(num_classes)]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    columns = {"target": classes_of(target), "prediction": classes_of(scores.argmax(axis=1))}
    table = table_of("class", {**columns, "probabilities": list(probabilities)})

    def reference(name: str, rows: np.ndarray) -> float:
        metric = build_named_metric(name, "class", num_classes, prepare_classes)
        metric.update(torch.tensor(scores[rows]), torch.tensor(target[rows]))
        return float(metric.compute())

    for name in (name.replace("K", "2") for name, kinds in FITS.items() if "class" in kinds):
        about = {"kind": "class", "classes": names}
        resampled(table, about, name, lambda rows, name=name: reference(name, rows))


def test_draws_of_named_metrics_of_labels_are_those_of_the_drawn_rows() -> None:
    random = np.random.default_rng(6)
    target = random.random((40, 3)) < 0.4
    scores = (random.normal(size=(40, 3)) + target).round(1)
    names = ["a", "b", "c"]
    sets = [[[names[i] for i in np.flatnonzero(row)] for row in each] for each in (target, scores > 0)]
    columns = {"target": sets[0], "prediction": sets[1], "probabilities": list(1 / (1 + np.exp(-scores)))}
    table = table_of("labels", columns)

    def reference(name: str, rows: np.ndarray) -> float:
        metric = build_named_metric(name, "multi_hot", 3, prepare_labels)
        metric.update(torch.tensor(scores[rows]), torch.tensor(target[rows]))
        return float(metric.compute())

    for name in (name for name, kinds in FITS.items() if "multi_hot" in kinds):
        about = {"kind": "labels", "classes": names}
        resampled(table, about, name, lambda rows, name=name: reference(name, rows))


@pytest.mark.parametrize("name", ["explained_variance", "mape", "median_absolute_error"])
def test_draws_of_named_metrics_of_numbers_are_those_of_the_drawn_rows(name: str) -> None:
    random = np.random.default_rng(7)
    target = random.normal(1e3, 1.0, (40, 2)).round(1)
    predicted = (target + random.normal(0.5, 1.0, (40, 2))).round(1)
    table = table_of("values", {"target": list(target), "prediction": list(predicted)}, several_values=True)

    def reference(rows: np.ndarray) -> float:
        metric = build_named_metric(name, "values", 2, lambda output, target: (output, target))
        metric.update(torch.tensor(predicted[rows]), torch.tensor(target[rows]))
        return float(metric.compute())

    resampled(table, {"kind": "values", "classes": None}, name, reference)


def test_interval_of_a_mean_agrees_with_theory_and_scipy() -> None:
    losses = np.random.default_rng(4).exponential(size=800).astype(np.float32)
    table = table_of("tokens", {"loss": losses, "num_right": [0] * 800})
    low, high = metric_intervals(table, {"kind": "tokens"}, {"loss": float(losses.mean())}).by_name["loss"]
    error = losses.std() / np.sqrt(len(losses))
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    theirs = stats.bootstrap(
        (losses,), np.mean, n_resamples=9_999, method="percentile", rng=np.random.default_rng(5), vectorized=True
    ).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.2 * error)


def test_interval_of_a_correlation_agrees_with_scipy() -> None:
    random = np.random.default_rng(6)
    target = random.normal(size=300)
    predicted = target + random.normal(size=300)
    table = table_of("values", {"target": target, "prediction": predicted})
    values = {
        "pearson": stats.pearsonr(predicted, target).statistic,
        "spearman": stats.spearmanr(predicted, target).statistic,
    }
    intervals = metric_intervals(table, {"kind": "values"}, values).by_name
    for name, statistic in (("pearson", stats.pearsonr), ("spearman", stats.spearmanr)):
        theirs = stats.bootstrap(
            (predicted, target),
            lambda a, b, statistic=statistic: statistic(a, b).statistic,
            paired=True,
            n_resamples=2_000,
            method="percentile",
            rng=np.random.default_rng(7),
            vectorized=False,
        )
        expected = theirs.confidence_interval
        assert intervals[name] == pytest.approx((expected.low, expected.high), abs=0.3 * theirs.standard_error)


def test_groups_of_rows_give_the_interval_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    target = np.sort(random.integers(0, 3, 20_000))  # neighbors are alike
    predicted = np.where(random.random(20_000) < 0.8, target, 0)
    table = table_of("class", {"target": classes_of(target), "prediction": classes_of(predicted)})
    about, values = {"kind": "class", "classes": None}, {"accuracy": float((target == predicted).mean())}
    values["macro_f1"] = f1 = float(fitting_f1(target, predicted))
    grouped = metric_intervals(table, about, values).by_name
    monkeypatch.setattr("trainer.intervals.resampling.MAX_UNITS", 20_000)
    whole = metric_intervals(table, about, values).by_name
    assert f1 < 1
    assert len(table) > MAX_UNITS
    for name, (low, high) in whole.items():
        assert grouped[name] == pytest.approx((low, high), abs=0.1 * (high - low))
    width = np.diff(whole["accuracy"])[0]
    assert width / 2 == pytest.approx(1.96 * np.sqrt(values["accuracy"] * (1 - values["accuracy"]) / 20_000), rel=0.08)


def fitting_f1(target: np.ndarray, predicted: np.ndarray) -> float:
    scores = [
        2 * ((target == c) & (predicted == c)).sum() / ((target == c).sum() + (predicted == c).sum()) for c in range(3)
    ]
    return float(np.mean(scores))


def test_a_metric_with_another_value_or_too_few_rows_has_no_interval() -> None:
    table = table_of("class", {"target": ["a", "b", "a"], "prediction": ["a", "a", "a"]})
    about = {"kind": "class", "classes": ["a", "b"]}
    assert metric_intervals(table, about, {"accuracy": 2 / 3}).by_name.keys() == {"accuracy"}
    other = metric_intervals(table, about, {"accuracy": 0.5, "auroc": 0.5, "max_error": 1.0, "cohen_kappa": np.nan})
    assert other.by_name == {}
    assert other.missing == {
        "accuracy": "the predictions do not contain what it is computed from",
        "auroc": "the predictions do not contain what it is computed from",
        "max_error": "the largest error of drawn rows says nothing about the errors of other rows",
        "cohen_kappa": "all predictions and all targets are the same class",
    }
    single = metric_intervals(table[:1], about, {"accuracy": 1.0})
    assert single == ({}, {"accuracy": "an interval needs at least 2 rows"})
    # Without a wrong answer, all draws are equal: the exact interval of a share, and none for other metrics.
    right = table_of("class", {"target": ["a", "b"] * 10, "prediction": ["a", "b"] * 10})
    exact = metric_intervals(right, about, {"accuracy": 1.0, "macro_f1": 1.0, "loss": 1.0})
    assert exact.by_name == {"accuracy": (pytest.approx(stats.beta.ppf(0.025, 20, 1)), 1.0)}
    assert exact.missing == {
        "macro_f1": "the value is 1 whichever row is left out",
        "loss": "the value is 1 in all draws of the rows",
    }
    assert quantile_interval(np.array([1.0] * 90 + [np.nan] * 10)) is None
    assert quantile_interval(np.array([1.0] * 96 + [np.nan] * 4)) == (1.0, 1.0)


def test_entities_that_are_all_right_have_the_exact_interval_of_their_rows() -> None:
    tags = [["B-x", "O"], ["O"], ["B-x", "B-x"], ["B-x"]] * 5
    sizes = [len(row) for row in tags]
    table = table_of("tags", {"target": tags, "prediction": tags, "num_targets": sizes, "num_right": sizes})
    names = ("accuracy", "entity_f1", "entity_precision", "entity_recall")
    intervals = metric_intervals(table, {"kind": "tags", "classes": ["B-x", "O"]}, dict.fromkeys(names, 1.0))
    assert intervals.missing == {}
    assert intervals.by_name["accuracy"] == (pytest.approx(stats.beta.ppf(0.025, 20, 1)), 1.0)
    for name in names[1:]:  # of the rows that have an entity
        assert intervals.by_name[name] == (pytest.approx(stats.beta.ppf(0.025, 15, 1)), 1.0)


RANKED = {
    "auroc": (ROC_AREA, lambda scores, labels: roc_auc_score(labels, scores)),
    "average_precision": (AVERAGE_PRECISION, lambda scores, labels: average_precision_score(labels, scores)),
    "spearman": (SPEARMAN, lambda a, b: stats.spearmanr(a, b).statistic),
    "median": (MEDIAN_ERROR, lambda a, b: np.median(np.abs(a - b))),
}


@pytest.mark.parametrize("name", list(RANKED))
@pytest.mark.parametrize("digits", [1, 8])
def test_many_rows_are_drawn_to_first_order(name: str, digits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    statistic, reference = RANKED[name]
    random = np.random.default_rng(10)
    second = random.random(1_500) < 0.2 if name in ("auroc", "average_precision") else random.normal(size=1_500)
    first = (second + random.normal(size=1_500)).round(digits)
    if name == "median" and digits == 1:
        digits, first = 8, first + random.normal(0, 0.02, 1_500)
    units, columns = Units.for_rows(1_500), (first[:, None], second[:, None])
    exact = draw_estimates([estimate_ranked(statistic, *columns, units)], units)[:, 0]
    monkeypatch.setattr("trainer.intervals.rank_estimates.MAX_ORDERED", 0)
    estimate = estimate_ranked(statistic, *columns, units)
    assert estimate(np.ones((1, 1_500)))[0] == pytest.approx(reference(first, second), abs=1e-9)
    drawn = draw_estimates([estimate], units)[:, 0]
    assert drawn.std() == pytest.approx(exact.std(), rel=0.15 if name == "median" else 0.05)
    assert np.corrcoef(drawn, exact)[0, 1] > (0.85 if name == "median" else 0.99)
    # The influence of a row is the derivative of the value by its weight.
    if name != "median":
        _, influence = statistic.influence(first, second)
        more = np.ones((1, 1_500))
        more[0, :20] += 1e-4
        change = (statistic.estimate(first, second)(more)[0] - reference(first, second)) / 1e-4
        assert change == pytest.approx(influence[:20].sum(), abs=2e-5)


def test_more_rows_than_groups_have_intervals_of_all_metrics_of_ranks() -> None:
    random = np.random.default_rng(11)
    target = random.integers(0, 3, 20_000)
    probabilities = random.dirichlet(np.ones(3), 20_000) * 0.5 + np.eye(3)[target] * 0.5 * random.random((20_000, 1))
    probabilities = (probabilities / probabilities.sum(axis=1, keepdims=True)).astype(np.float32)
    columns = {"target": classes_of(target), "prediction": classes_of(probabilities.argmax(axis=1))}
    table = table_of("class", {**columns, "probabilities": list(probabilities)})
    one_hot = np.eye(3)[target]
    values = {
        "auroc": roc_auc_score(one_hot, probabilities),
        "average_precision": average_precision_score(one_hot, probabilities),
    }
    intervals = metric_intervals(table, {"kind": "class", "classes": ["c0", "c1", "c2"]}, values)
    assert intervals.missing == {}
    for name, (low, high) in intervals.by_name.items():
        assert low < values[name] < high
        assert high - low < 0.02


def test_uniformity_has_the_interval_of_its_pairs() -> None:
    vectors = torch.nn.functional.normalize(
        torch.randn(300, 4, generator=torch.Generator().manual_seed(0)) + torch.tensor([1.0, 0, 0, 0]), dim=1
    )
    closeness = mean_closeness(vectors).numpy()
    assert np.log(closeness.mean()) == pytest.approx(float(uniformity(vectors[:, None])), abs=1e-6)
    table = table_of("similarity", {"prediction": [0.0] * 300, "closeness": closeness})
    value = float(np.log(closeness.mean()))
    low, high = metric_intervals(table, {"kind": "similarity"}, {"uniformity": value}).by_name["uniformity"]
    kernel = (-2 * (2 - 2 * (vectors @ vectors.T))).exp().double().numpy()

    def without(row: int) -> float:
        rows = np.delete(np.arange(300), row)
        part = kernel[np.ix_(rows, rows)]
        return float(np.log((part.sum() - np.trace(part)) / (299 * 298)))

    jackknife = np.array([without(row) for row in range(300)])
    error = np.sqrt(299 / 300 * ((jackknife - jackknife.mean()) ** 2).sum())
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.08)
    # A part of the rows has other pairs.
    assert "uniformity" not in make_estimates(table, {"kind": "similarity"}, Units.for_rows(300), is_part=True)


def test_a_metric_of_a_class_is_computed_again_for_each_draw() -> None:
    from torchmetrics.classification import MulticlassCalibrationError

    random = np.random.default_rng(12)
    target = random.integers(0, 3, 80)
    probabilities = random.dirichlet(np.ones(3), 80).astype(np.float32)
    columns = {"target": classes_of(target), "prediction": classes_of(probabilities.argmax(axis=1))}
    table = table_of("class", {**columns, "probabilities": list(probabilities)})
    about = {"kind": "class", "classes": ["c0", "c1", "c2"]}

    def error(rows: np.ndarray) -> float:
        is_right = probabilities[rows].argmax(axis=1) == target[rows]
        return calibration_error(probabilities[rows].max(axis=1).astype(np.float64), is_right)

    metric = MulticlassCalibrationError(3, n_bins=15)
    estimate = estimate_again(metric, metric_arguments(table, about) or [])
    counts = next(Units.for_rows(80).draws())[:5]
    for drawn, value in zip(counts, estimate(counts), strict=True):
        assert value == pytest.approx(error(np.repeat(np.arange(80), drawn.astype(int))), abs=1e-6)
    value = error(np.arange(80))
    found = metric_intervals(table, about, {"ece": value}, {"ece": metric})
    assert found.by_name["ece"][0] < found.by_name["ece"][1]
    many = pa.concat_tables([table] * 300)
    assert metric_intervals(many, about, {"ece": value}, {"ece": metric}).missing == {
        "ece": "it would be computed 1,000 times from more than 32,768 values"
    }


def test_a_metric_that_cannot_be_computed_on_a_draw_has_a_reason() -> None:
    from torchmetrics import Metric

    class NeedsAll(Metric):
        def __init__(self) -> None:
            super().__init__()
            self.add_state("classes", default=[], dist_reduce_fx="cat")

        def update(self, output: Tensor, target: Tensor) -> None:
            if len(target.unique()) < len(target):
                raise ValueError("a row twice")

        def compute(self) -> Tensor:
            return torch.tensor(1.0)

    table = table_of("values", {"target": [1.0, 2.0, 3.0], "prediction": [1.0, 2.0, 4.0]})
    assert metric_intervals(table, {"kind": "values"}, {"mine": 1.0}, {"mine": NeedsAll()}).missing == {
        "mine": "it is not defined in more than 5% of the draws of the rows"
    }


def macro_f1_of(random: np.random.Generator, num_rows: int, num_classes: int, share: float = 0.8) -> pa.Table:
    """Return predictions of classes of which many have few rows (Zipf), each right with a probability."""
    weights = 1 / np.arange(1, num_classes + 1)
    target, other = random.choice(num_classes, (2, num_rows), p=weights / weights.sum())
    predicted = np.where(random.random(num_rows) < share, target, other)
    return table_of("class", {"target": classes_of(target), "prediction": classes_of(predicted)})


@pytest.mark.parametrize(("count", "tolerance"), [(12, 1e-9), (NUM_DRAWS, 1e-9), (1500, 0.06)])
def test_the_jackknife_of_a_mean_is_its_t_interval(count: int, tolerance: float) -> None:
    random = np.random.default_rng(3)
    units, values = Units.for_rows(count), random.exponential(size=count)
    found = jackknife_interval(lambda counts: counts @ values / counts.sum(axis=1), units, (-np.inf, np.inf))
    expected = stats.t.interval(0.95, count - 1, loc=values.mean(), scale=stats.sem(values))
    assert np.subtract(found, values.mean()) == pytest.approx(np.subtract(expected, values.mean()), rel=tolerance)


def test_deleted_groups_of_rows_are_all_rows() -> None:
    for count in (7, 2500):
        units = Units.for_rows(count)
        kept, sizes = (np.concatenate(each) for each in zip(*units.deletions(), strict=True))
        assert len(sizes) == min(count, NUM_DRAWS)
        assert np.array_equal((1 - kept).sum(axis=1), sizes)
        assert np.array_equal((1 - kept).sum(axis=0), np.ones(count))


def test_the_interval_of_macro_f1_of_rare_classes_is_around_its_value() -> None:
    table = macro_f1_of(np.random.default_rng(0), 1500, 300)
    about = {"kind": "class", "classes": None}
    units = Units.for_rows(len(table))
    estimate = make_estimates(table, about, units)["macro_f1"]
    value = float(estimate(np.ones((1, units.count)))[0])
    low, high = metric_intervals(table, about, {"macro_f1": value}).by_name["macro_f1"]
    assert (low + high) / 2 == pytest.approx(value)
    draws = draw_estimates([estimate], units)[:, 0]
    assert draws.mean() < value - draws.std() / 2  # the bias that the jackknife avoids
    assert 1.2 < (high - low) / (2 * 1.96 * draws.std()) < 1.6


def test_the_interval_of_a_difference_of_macro_f1_is_paired() -> None:
    random = np.random.default_rng(1)
    left = macro_f1_of(random, 600, 60)
    predicted, target = (np.array(left[name].to_pylist()) for name in ("prediction", "target"))
    corrected = np.where(random.random(600) < 0.3, target, predicted)
    right = left.set_column(left.column_names.index("prediction"), "prediction", pa.array(corrected.tolist()))
    about = {"kind": "class", "classes": None}
    units = Units.for_rows(600)
    once = np.ones((1, 600))
    values = [float(make_estimates(table, about, units)["macro_f1"](once)[0]) for table in (left, right)]
    pair = [(table, {"macro_f1": value}) for table, value in zip((left, right), values, strict=True)]
    low, high = paired_intervals(pair[0], pair[1], about)["macro_f1"]
    assert (low + high) / 2 == pytest.approx(values[1] - values[0])
    assert low > 0
    alone = [metric_intervals(table, about, own).by_name["macro_f1"] for table, own in pair]
    assert high - low < 0.8 * np.hypot(*(end - start for start, end in alone))
    assert paired_intervals(pair[0], pair[0], about) == {"macro_f1": (0.0, 0.0)}


def test_draws_are_functions_of_their_number() -> None:
    units = Units.for_rows(7)
    first, second = (np.concatenate(list(units.draws())) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (NUM_DRAWS, 7)
    assert (first.sum(axis=1) == 7).all()
    assert len({tuple(row) for row in first}) > 500
    assert first.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("metric", ["accuracy", "mae", "pearson"])
def test_intervals_cover_the_true_value_in_95_percent_of_samples(metric: str) -> None:
    random = np.random.default_rng(9)
    samples, truth, count = [], [], 100

    def sample(size: int) -> tuple[pa.Table, str]:
        if metric == "accuracy":
            target = random.integers(0, 3, size)
            predicted = np.where(random.random(size) < 0.8, target, random.integers(0, 3, size))
            return table_of("class", {"target": classes_of(target), "prediction": classes_of(predicted)}), "class"
        target = random.normal(size=size)
        return table_of("values", {"target": target, "prediction": target + random.normal(size=size)}), "values"

    for size in (100_000, *[count] * 400):
        table, kind = sample(size)
        units = Units.for_rows(size)
        estimate = make_estimates(table, {"kind": kind, "classes": None}, units)[metric]
        if size > count:
            truth.append(float(estimate(np.ones((1, units.count)))[0]))
        else:
            samples.append(quantile_interval(draw_estimates([estimate], units)[:, 0]))
    covered = np.mean([pair is not None and pair[0] <= truth[0] <= pair[1] for pair in samples])
    print(metric, covered)
    assert 0.92 <= covered <= 0.975


@pytest.mark.slow
@pytest.mark.parametrize(("num_classes", "count"), [(3, 200), (40, 400)])
def test_intervals_of_macro_f1_cover_that_of_other_rows(num_classes: int, count: int) -> None:
    random = np.random.default_rng(8)
    units = Units.for_rows(count)
    about = {"kind": "class", "classes": None}
    estimates = [make_estimates(macro_f1_of(random, count, num_classes), about, units)["macro_f1"] for _ in range(300)]
    truth = np.mean([estimate(np.ones((1, count)))[0] for estimate in estimates])
    pairs = [jackknife_interval(estimate, units, (0.0, 1.0)) for estimate in estimates[:200]]
    covered = np.mean([low <= truth <= high for low, high in pairs])
    print(num_classes, covered)
    assert 0.92 <= covered <= 0.99


def test_estimates_of_unknown_metrics_are_not_made() -> None:
    table = table_of("similarity", {"prediction": [0.5, 0.25], "target": [None, None]})
    units = Units.for_rows(2)
    assert make_estimates(table, {"kind": "similarity"}, units).keys() == {"loss", "alignment"}
    assert fitting_estimates(table, {"kind": "similarity"}, {"alignment": 1.25}, units).keys() == {"alignment"}
