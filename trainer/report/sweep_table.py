"""The table of a sweep: the monitored metric of each setting over its seeds, best first. Needs no torch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from trainer.display import counted
from trainer.layout import Document
from trainer.report.console import format_number
from trainer.report.metric_names import metric_range

REPEATED = ("seed", "data.fold")
"""Keys over which jobs are grouped."""

_COLUMNS = ("metric", "mean", "sd", "low", "high", "jobs", "missing", "reason")
_CONFIDENCE = 0.95
_ROUNDING = 1e-6
MIN_JOBS = 3
"""Jobs of a setting from which on its mean has an interval: with two, it is 9 times as wide as their difference."""


@dataclass(frozen=True)
class JobResult:
    """The result of a job of a sweep.

    Attributes:
        changes: The swept keys with the job's values, as written.
        score: The best score, as `state.json` of a checkpoint contains it; None if the job is not done or has none.
        reason: Why the job is not done; empty if it is.
    """

    changes: Mapping[str, str]
    score: Document | None
    reason: str = ""


def make_table(results: Sequence[JobResult]) -> tuple[list[str], list[list[object]]]:
    """Return the columns and rows of the table: a row for each setting, over its seeds and folds.

    The rows of a metric are sorted by its mean, best first; settings without a finished job come last. `low` and `high`
    are the 95 % interval of the mean, see `mean_interval`; it is unknown with fewer than three jobs, and if all have
    the same value.
    """
    keys = list(dict.fromkeys(key for result in results for key in result.changes if key not in REPEATED))
    groups: dict[tuple[tuple[str, ...], str], list[JobResult]] = {}
    for result in results:
        setting = tuple(result.changes.get(key, "") for key in keys)
        metric = "" if result.score is None else str(result.score["name"])
        groups.setdefault((setting, metric), []).append(result)
    # Jobs that failed belong to the row of the metric that the other jobs of their setting have.
    for setting, metric in [key for key in groups if not key[1]]:
        if own := next((key for key in groups if key[0] == setting and key[1]), None):
            groups[own] += groups.pop((setting, metric))
    ordered = sorted(groups.items(), key=lambda item: _rank(item[0][1], item[1]))
    return [*keys, *_COLUMNS], [[*setting, *_cells(metric, group)] for (setting, metric), group in ordered]


def setting_of(changes: Mapping[str, str]) -> str:
    """Return the setting of a job in words, which its seed and fold do not change; empty for the only one."""
    return ", ".join(f"{key}={value}" for key, value in sorted(changes.items()) if key not in REPEATED)


def jobs_of_best(results: Mapping[str, JobResult]) -> dict[str, JobResult]:
    """Return the complete jobs of the best setting, given the result of each job by its name."""
    columns, rows = make_table(list(results.values()))
    keys = columns[: -len(_COLUMNS)]
    best = rows[0][: len(keys)] if rows else []
    return {
        name: result
        for name, result in results.items()
        if not result.reason and [result.changes.get(key, "") for key in keys] == best
    }


def _values(group: Sequence[JobResult]) -> list[float]:
    return [float(result.score["value"]) for result in group if result.score is not None]


def _rank(metric: str, group: Sequence[JobResult]) -> tuple[bool, str, float]:
    score = next((result.score for result in group if result.score is not None), None)
    if score is None:
        return True, metric, 0.0
    mean = fmean(_values(group))
    return False, metric, math.inf if math.isnan(mean) else -mean if score["higher_is_better"] else mean


def _cells(metric: str, group: Sequence[JobResult]) -> list[object]:
    values = _values(group)
    reasons = [result.reason for result in group if result.reason]
    mean = fmean(values) if values else None
    deviation = low = high = None
    if mean is not None and len(values) > 1 and all(map(math.isfinite, values)):
        deviation = stdev(values)
        low, high = mean_interval(values, metric_range(metric)) or (None, None)
    return [metric, mean, deviation, low, high, len(values), len(reasons), reasons[0] if reasons else ""]


def mean_interval(values: Sequence[float], limits: tuple[float, float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of finite values by Student's t distribution, cut off at the limits.

    A mean cannot be outside of the limits of its values, so the interval covers it as often as the uncut one does.
    Fewer than three values, or equal ones, have no interval.

    Args:
        values: The values.
        limits: The lowest and the highest possible value, as `metric_range` returns them.
    """
    if len(values) < MIN_JOBS or not (deviation := stdev(values)):
        return None
    mean, half = fmean(values), t_quantile(len(values) - 1) * deviation / math.sqrt(len(values))
    low, high = limits
    if min(values) < low - _ROUNDING or max(values) > high + _ROUNDING:  # the user's own metric, of a known name
        low, high = -math.inf, math.inf
    return max(mean - half, low), min(mean + half, high)


def interval_of_difference(
    left: Sequence[float], right: Sequence[float], limits: tuple[float, float], *, is_paired: bool
) -> tuple[float, float] | None:
    """Return the 95 % interval of the difference of two means, right - left; None if there are too few values.

    Pairs have the t interval of the mean of their differences. Others have Welch's (1947, "The generalization of
    'Student's' problem when several different population variances are involved"), whose degrees of freedom are rounded
    down.

    Args:
        left, right: The values; pairs have the same place.
        limits: The lowest and the highest possible value.
        is_paired: The values are pairs.
    """
    if not all(map(math.isfinite, (*left, *right))):
        return None
    low, high = limits
    if is_paired:
        differences = [new - old for old, new in zip(left, right, strict=True)]
        return mean_interval(differences, (low - high, high - low))
    if min(len(left), len(right)) < MIN_JOBS:
        return None
    errors = [stdev(values) ** 2 / len(values) for values in (left, right)]
    if not any(errors):
        return None
    spread = sum(error**2 / (len(values) - 1) for error, values in zip(errors, (left, right), strict=True))
    half = t_quantile(int(sum(errors) ** 2 / spread)) * math.sqrt(sum(errors))
    difference = fmean(right) - fmean(left)
    return max(difference - half, low - high), min(difference + half, high - low)


def t_quantile(degrees: int) -> float:
    """Return t with P(-t < T < t) = 0.95 for Student's t distribution, by bisection of its closed form.

    Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4: a finite sum for an integer
    number of degrees of freedom, with theta = arctan(t / sqrt(degrees)).
    """

    def probability(theta: float) -> float:
        cosine = math.cos(theta)
        odd = degrees % 2
        term = cosine if odd else 1.0
        total = term if degrees > 1 else 0.0
        for k in range(2 + odd, degrees - 1, 2):
            term *= (k - 1) / k * cosine**2
            total += term
        total *= math.sin(theta)
        return 2 / math.pi * (theta + total) if odd else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle) < _CONFIDENCE else (low, middle)
    return math.tan(low) * math.sqrt(degrees)


def table_csv(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table as CSV with every digit of its numbers; unknown values are empty."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def displayed_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]]]:
    """Return a table for people: the interval in one column, or why there is none, and no columns without content."""
    start = len(columns) - len(_COLUMNS)
    has_failures = any(row[-2] for row in rows)
    names = ["metric", "mean", "sd", "95 % interval", "jobs", *(("missing", "reason") if has_failures else ())]
    shown: list[list[object]] = []
    for row in rows:
        metric, mean, deviation, low, high, jobs, missing, reason = row[start:]
        if isinstance(low, float) and isinstance(high, float):
            interval = f"{format_number(low)} to {format_number(high)}"
        else:
            interval = "- no spread" if deviation == 0 and jobs != 2 else f"- needs {MIN_JOBS} jobs" if jobs else "-"
        failures = [missing, reason] if has_failures else []
        shown.append([*row[:start], metric, mean, deviation, interval, jobs, *failures])
    return [*columns[:start], *names], shown


def screen_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> tuple[list[str], list[list[object]]]:
    """Return a table that fits a terminal: without the standard deviation, the reasons, and a metric that all share."""
    names, shown = displayed_table(columns, rows)
    metrics = {row[len(columns) - len(_COLUMNS)] for row in shown}
    left_out = {"sd", "reason", *(("metric",) if len(metrics - {""}) == 1 else ())}
    kept = [
        number for number, name in enumerate(names) if number < len(columns) - len(_COLUMNS) or name not in left_out
    ]
    return [names[number] for number in kept], [[row[number] for number in kept] for row in shown]


def _are_different_losses(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> bool:
    """Return whether the settings of a table differ in the loss or in one of its arguments."""
    losses = [
        place for place, name in enumerate(columns[: -len(_COLUMNS)]) if name == "loss" or name.startswith("loss.")
    ]
    return len({tuple(row[place] for place in losses) for row in rows}) > 1


def describe_best(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return the best setting of a table and its mean in a sentence."""
    best = dict(zip(columns, rows[0], strict=True)) if rows else {}
    if not isinstance(mean := best.get("mean"), float):
        return "No job is complete."
    if str(best["metric"]).rpartition("/")[2] == "loss" and _are_different_losses(columns, rows):
        return (
            "The settings have different losses, whose values do not say which setting is best. "
            "Set checkpoint.monitor to a metric of the task."
        )
    setting = ", ".join(f"{key}={best[key]}" for key in columns[: -len(_COLUMNS)] if best[key] != "")
    interval = "no interval" if best["low"] is None else f"95 % interval {best['low']:.4f} to {best['high']:.4f}"
    jobs = counted(int(str(best["jobs"])), "job")
    title = f"Best: {setting} with" if setting else "The only setting:"
    return f"{title} validation {best['metric']} {mean:.4f} ({jobs}, {interval})."
