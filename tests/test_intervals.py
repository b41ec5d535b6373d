"""Intervals: the estimates equal the metrics, and the draws those of scipy's bootstrap and of closed forms."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.test_row_recorder import CASES, record
from trainer.estimates import MAX_UNITS, NUM_DRAWS, Units, make_estimates
from trainer.intervals import draw_estimates, fitting_estimates, metric_intervals, quantile_interval
from trainer.predictions import predictions_schema
from trainer.row_recorder import prediction_kind
from trainer.task.named_metrics import FITS, build_named_metric, prepare_classes, prepare_labels

WITHOUT = {"uniformity"}
"""Metrics of all pairs of rows, which have no interval; and `loss` if it is a statistic of a batch."""


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
    intervals = metric_intervals(table, about, values)
    assert values.keys() - intervals.keys() == ((WITHOUT | {"loss"}) if name == "pairs" else set())
    for metric, (low, high) in intervals.items():
        assert low <= values[metric] + 1e-6
        assert high >= values[metric] - 1e-6
        assert high - low < 10 * max(1.0, abs(values[metric]))


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


@pytest.mark.parametrize("name", ["explained_variance", "mape"])
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
    low, high = metric_intervals(table, {"kind": "tokens"}, {"loss": float(losses.mean())})["loss"]
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
    intervals = metric_intervals(table, {"kind": "values"}, values)
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
    grouped = metric_intervals(table, about, values)
    monkeypatch.setattr("trainer.estimates.MAX_UNITS", 20_000)
    whole = metric_intervals(table, about, values)
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
    assert metric_intervals(table, about, {"accuracy": 2 / 3}).keys() == {"accuracy"}
    assert metric_intervals(table, about, {"accuracy": 0.5, "auroc": 0.5}) == {}
    assert metric_intervals(table[:1], about, {"accuracy": 1.0}) == {}
    # Without a wrong answer, all draws are equal: the exact interval of a share, and none for other metrics.
    right = table_of("class", {"target": ["a", "b"] * 10, "prediction": ["a", "b"] * 10})
    exact = metric_intervals(right, about, {"accuracy": 1.0, "macro_f1": 1.0, "loss": 1.0})
    assert exact == {"accuracy": (pytest.approx(stats.beta.ppf(0.025, 20, 1)), 1.0)}
    assert quantile_interval(np.array([1.0] * 90 + [np.nan] * 10)) is None
    assert quantile_interval(np.array([1.0] * 96 + [np.nan] * 4)) == (1.0, 1.0)


def test_draws_are_functions_of_their_number() -> None:
    units = Units.for_rows(7)
    first, second = (np.concatenate(list(units.draws())) for _ in range(2))
    assert np.array_equal(first, second)
    assert first.shape == (NUM_DRAWS, 7)
    assert (first.sum(axis=1) == 7).all()
    assert len({tuple(row) for row in first}) > 500
    assert first.mean(axis=0) == pytest.approx(np.ones(7), abs=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "count"), [("accuracy", 100), ("macro_f1", 200), ("mae", 100), ("pearson", 100)])
def test_intervals_cover_the_true_value_in_95_percent_of_samples(metric: str, count: int) -> None:
    random = np.random.default_rng(9)
    samples, truth = [], []

    def sample(size: int) -> tuple[pa.Table, str]:
        if metric in ("accuracy", "macro_f1"):
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


def test_estimates_of_unknown_metrics_are_not_made() -> None:
    table = table_of("similarity", {"prediction": [0.5, 0.25], "target": [None, None]})
    units = Units.for_rows(2)
    assert make_estimates(table, {"kind": "similarity"}, units).keys() == {"loss", "alignment"}
    assert fitting_estimates(table, {"kind": "similarity"}, {"alignment": 1.25}, units).keys() == {"alignment"}
