"""The table of a sweep."""

import io
import math
from dataclasses import replace

import pytest
from rich.console import Console
from scipy import stats

from trainer.report.console import print_table
from trainer.report.sweep_table import (
    JobResult,
    describe_best,
    displayed_table,
    interval_of_difference,
    make_table,
    screen_table,
    t_quantile,
    table_csv,
)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 10, 31, 100])
def test_quantiles_equal_scipy(degrees: int) -> None:
    assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-12)


def result(lr: str, seed: int, value: float | None, metric: str = "loss", higher: bool = False) -> JobResult:
    score = None if value is None else {"name": metric, "value": value, "higher_is_better": higher}
    return JobResult({"lr": lr, "seed": str(seed)}, score, "diverged" if value is None else "")


def test_settings_are_grouped_over_seeds_and_the_best_comes_first() -> None:
    results = [
        *(result("1", seed, value) for seed, value in enumerate((0.5, 0.7, 0.9))),
        *(result("2", seed, value) for seed, value in enumerate((0.3, None, 0.5))),
        result("3", 0, math.nan),
        result("4", 0, None),
    ]
    columns, rows = make_table(results)
    table = [dict(zip(columns, row, strict=True)) for row in rows]
    assert [row["lr"] for row in table] == ["2", "1", "3", "4"]
    assert [row["jobs"] for row in table] == [2, 3, 1, 0]
    assert [row["missing"] for row in table] == [1, 0, 0, 1]
    assert [row["reason"] for row in table] == ["diverged", "", "", "diverged"]
    low, high = stats.t.interval(0.95, 2, loc=0.7, scale=stats.sem([0.5, 0.7, 0.9]))
    assert (table[1]["low"], table[1]["high"]) == pytest.approx((low, high))
    assert (table[1]["mean"], table[1]["sd"]) == pytest.approx((0.7, 0.2))
    assert (table[3]["mean"], table[3]["low"]) == (None, None)


@pytest.mark.parametrize(
    ("metric", "values", "limits"),
    [
        ("accuracy", (0.99, 1.0, 0.97), (None, 1.0)),
        ("accuracy", (0.0, 0.0, 0.2), (0.0, None)),
        ("mcc", (0.0, 0.1, 0.9), (None, 1.0)),
        ("mae", (0.0, 1.0, 5.0), (0.0, None)),
        ("loss", (0.0, 1.0, 5.0), (None, None)),
        ("accuracy", (99.0, 100.0, 97.0), (None, None)),  # a metric of the user in percent
    ],
)
def test_intervals_do_not_leave_the_range_of_the_metric(
    metric: str, values: tuple[float, ...], limits: tuple[float | None, float | None]
) -> None:
    columns, (row,) = make_table([result("1", seed, value, metric) for seed, value in enumerate(values)])
    table = dict(zip(columns, row, strict=True))
    uncut = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    expected = [end if limit is None else limit for end, limit in zip(uncut, limits, strict=True)]
    assert [table["low"], table["high"]] == pytest.approx(expected)


def test_differences_of_means_agree_with_scipy() -> None:
    left, right, other = [0.5, 0.6, 0.4, 0.55], [0.58, 0.66, 0.5, 0.6], [0.7, 0.4, 0.9]
    limits = (-math.inf, math.inf)
    paired = stats.ttest_rel(right, left).confidence_interval()
    assert interval_of_difference(left, right, limits, is_paired=True) == pytest.approx(tuple(paired))
    welch = stats.ttest_ind(other, left, equal_var=False)
    half = stats.t.ppf(0.975, int(welch.df)) * (sum(other) / 3 - sum(left) / 4) / welch.statistic
    found = interval_of_difference(left, other, limits, is_paired=False)
    assert found == pytest.approx((sum(other) / 3 - sum(left) / 4 - half, sum(other) / 3 - sum(left) / 4 + half))
    bounded = interval_of_difference([0.0, 0.0, 0.9], [1.0, 0.9, 1.0], (0, 1), is_paired=True)
    assert bounded == (pytest.approx(stats.ttest_1samp([1.0, 0.9, 0.1], 0).confidence_interval().low), 1)
    for few in ([0.5, 0.6], [0.5, 0.6, math.nan]):
        assert interval_of_difference(few, few, limits, is_paired=True) is None
        assert interval_of_difference(left, few, limits, is_paired=False) is None


def test_the_table_of_twelve_settings_breaks_no_cell_on_80_columns() -> None:
    settings = [
        (loss, lr) for loss in ("focal", "cross_entropy", "poly") for lr in ("0.0001", "0.0003", "0.001", "0.003")
    ]
    results = [
        JobResult(
            {"loss": loss, "optimizer.lr": lr, "seed": str(seed)},
            {"name": "accuracy", "value": 0.8 + (7 * number + 3 * seed) % 11 / 100, "higher_is_better": True},
        )
        for number, (loss, lr) in enumerate(settings)
        for seed in range(3)
    ]
    results[-1] = JobResult(
        results[-1].changes, None, "step 3: the run diverged: loss nan; the weights were not updated."
    )
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    print_table(console, "sweeps/losses", *screen_table(*make_table(results)))
    rows = [line for line in screen.getvalue().splitlines() if line.startswith("│")]
    assert len(rows) == 12
    assert sum("- needs 3 jobs" in row for row in rows) == 1
    assert sum(" to " in row for row in rows) == 11


def test_a_missing_job_does_not_narrow_the_interval() -> None:
    values = [0.5, 0.7, None, 0.9]
    columns, (row,) = make_table([result("1", seed, value) for seed, value in enumerate(values)])
    table = dict(zip(columns, row, strict=True))
    assert (table["jobs"], table["missing"]) == (3, 1)
    expected = stats.t.interval(0.95, 2, loc=0.7, scale=stats.sem([0.5, 0.7, 0.9]))
    assert (table["low"], table["high"]) == pytest.approx(expected)


def test_direction_and_metrics() -> None:
    results = [result("1", 0, 0.5, "accuracy", True), result("2", 0, 0.7, "accuracy", True), result("3", 0, 0.1)]
    columns, rows = make_table(results)
    assert [row[0] for row in rows] == ["2", "1", "3"]
    assert describe_best(columns, rows) == "Best: lr=2 with validation accuracy 0.7000 (1 job, no interval)."
    assert table_csv(columns, rows).splitlines()[1] == "2,accuracy,0.7,,,,1,0,"


@pytest.mark.parametrize(
    ("metric", "key", "is_compared"), [("loss", "loss", False), ("loss", "lr", True), ("mae", "loss", True)]
)
def test_values_of_different_losses_are_not_compared(metric: str, key: str, is_compared: bool) -> None:
    results = [replace(result("a", 0, 0.5, metric), changes={key: name, "seed": "0"}) for name in ("a", "b")]
    sentence = describe_best(*make_table(results))
    assert sentence.startswith(
        "Best: " if is_compared else "The settings have different losses, whose values do not say"
    )


def test_a_sweep_without_a_result_says_so() -> None:
    assert describe_best(*make_table([result("1", 0, None)])) == "No job is complete."
    columns, rows = make_table([result("1", seed, value) for seed, value in enumerate((0.5, 0.6, 0.7))])
    assert describe_best(columns, rows) == (
        "Best: lr=1 with validation loss 0.6000 (3 jobs, 95 % interval 0.3516 to 0.8484)."
    )


@pytest.mark.parametrize(
    ("values", "interval"),
    [
        ([0.5], "- needs 3 jobs"),
        ([0.5, 0.7], "- needs 3 jobs"),
        ([0.5, 0.5], "- needs 3 jobs"),
        ([0.5, 0.5, 0.5], "- no spread"),
        ([0.5, 0.6, 0.7], "0.3516 to 0.8484"),
        ([None, None], "-"),
    ],
)
def test_only_three_different_jobs_have_an_interval(values: list[float | None], interval: str) -> None:
    columns, rows = make_table([result("1", seed, value) for seed, value in enumerate(values)])
    names, (row,) = displayed_table(columns, rows)
    shown = dict(zip(names, row, strict=True))
    assert shown["95 % interval"] == interval
    assert ("reason" in shown) is (None in values)
    stored = dict(zip(columns, rows[0], strict=True))
    assert (stored["low"] is None) is interval.startswith("-")
