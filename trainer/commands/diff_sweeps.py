"""The comparison of two sweeps: their configs, their best settings, and the means of equal settings, paired by seed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trainer.commands.diff_rows import NO_DIFFERENCE, signed, signed_range
from trainer.commands.sweep import read_results
from trainer.display import counted
from trainer.documents import SWEEP as SWEEP_SHAPE
from trainer.documents import flatten, read_document
from trainer.layout import SWEEP, Document
from trainer.report.console import print_indented, print_table
from trainer.report.metric_names import metric_range
from trainer.report.sweep_table import (
    MIN_JOBS,
    REPEATED,
    JobResult,
    describe_best,
    interval_of_difference,
    jobs_of_best,
    make_table,
    setting_of,
)

if TYPE_CHECKING:
    from rich.console import Console

_BEST: Final = "best settings"

_Group = dict[tuple[str, ...], float]
"""The score of each job of a setting, by its values of the keys over which jobs are grouped."""


def read_shared_config(folder: Path) -> dict[str, object]:
    """Return the config that the jobs of a sweep share, by dotted key.

    Raises:
        CheckpointError: The document of the sweep cannot be read.
    """
    return dict(flatten(read_document(folder / SWEEP, SWEEP_SHAPE, "Run the sweep again")["config"]))


class _Sweep:
    """The record of a sweep in its folder.

    Attributes:
        config: The config that its jobs share, by dotted key.
        results: The result of each job, by its name.
    """

    def __init__(self, folder: Path) -> None:
        self.config = read_shared_config(folder)
        self.results = read_results(folder)

    def best(self) -> tuple[str, list[JobResult]]:
        """Return the sentence about the best setting, and its jobs."""
        return describe_best(*make_table(list(self.results.values()))), list(jobs_of_best(self.results).values())

    def settings(self) -> dict[str, list[JobResult]]:
        """Return the complete jobs of each setting by its description."""
        settings: dict[str, list[JobResult]] = {}
        for result in self.results.values():
            if not result.reason:
                settings.setdefault(setting_of(result.changes), []).append(result)
        return settings

    def scores(self, jobs: list[JobResult]) -> _Group:
        """Return the scores of some jobs by seed and fold."""
        return {
            tuple(result.changes.get(key, str(self.config.get(key))) for key in REPEATED): float(result.score["value"])
            for result in jobs
            if result.score is not None
        }


def compare_sweeps(left: Path, right: Path) -> Document:
    """Return the comparison of two sweeps as JSON.

    It has the sentence `best` about each sweep, and `means`: of the best settings, then of each setting of both sweeps,
    `setting`, the mean of each side, their `difference`, its 95 % `interval` if there is one, the number of `pairs` of
    jobs with the same seed and fold, 0 if jobs are not paired, and the `verdict` on the right one.
    """
    sweeps = _Sweep(left), _Sweep(right)
    (left_text, left_best), (right_text, right_best) = (sweep.best() for sweep in sweeps)
    document: Document = {
        "left": str(left),
        "right": str(right),
        "best": {"left": left_text, "right": right_text},
        "metric": None,
        "means": [],
    }
    scores = [result.score for result in (*left_best, *right_best) if result.score is not None]
    if not left_best or not right_best or len({score["name"] for score in scores}) != 1:
        return document
    document["metric"] = scores[0]["name"]
    pairs = {_BEST: (left_best, right_best)}
    settings = [sweep.settings() for sweep in sweeps]
    pairs |= {name: (jobs, settings[1][name]) for name, jobs in settings[0].items() if name and name in settings[1]}
    for name, sides in pairs.items():
        groups = [sweep.scores(jobs) for sweep, jobs in zip(sweeps, sides, strict=True)]
        document["means"].append({"setting": name, **_compare(groups[0], groups[1], scores[0])})
    return document


def _compare(left: _Group, right: _Group, score: Mapping[str, object]) -> Document:
    """Return the comparison of two settings: of the jobs with the same seed and fold if there are some, else of all."""
    shared = [key for key in left if key in right]
    sides = [[group[key] for key in (shared or group)] for group in (left, right)]
    means = [math.fsum(values) / len(values) for values in sides]
    interval = interval_of_difference(sides[0], sides[1], metric_range(str(score["name"])), is_paired=bool(shared))
    low, high = interval or (0.0, 0.0)
    if not score["higher_is_better"]:
        low, high = -high, -low
    verdict = "better" if low > 0 else "worse" if high < 0 else NO_DIFFERENCE
    return {
        "left": means[0],
        "right": means[1],
        "difference": means[1] - means[0],
        "interval": None if interval is None else list(interval),
        "jobs": [len(values) for values in sides],
        "pairs": len(shared),
        "verdict": verdict if interval else None,
    }


def print_sweeps(console: Console, document: Document) -> None:
    """Print the best setting of each sweep, and the means of the settings that can be compared."""
    names = document["left"], document["right"]
    for name, sentence in zip(names, document["best"].values(), strict=True):
        print_indented(console, "", f"{name}: {sentence}")
    if document["metric"] is None:
        print_indented(console, "", "means: the sweeps have no complete jobs with the same monitored metric")
        return
    best = document["means"][0]
    interval = "no interval" if best["interval"] is None else f"95% interval {signed_range(best['interval'])}"
    numbers = f"{document['metric']} {signed(best['difference'])}, {interval}, {_describe_jobs(best)}"
    left, right = names
    if best["verdict"] in (None, NO_DIFFERENCE):
        print_indented(console, "", f"{NO_DIFFERENCE} between the best settings of {left} and {right}: {numbers}")
    else:
        print_indented(console, "", f"the best of {right} is {best['verdict']} than that of {left}: {numbers}")
    columns = ["setting", *names, "difference", "95% interval", "jobs", f"{right} is"]
    rows = [
        [
            each["setting"],
            each["left"],
            each["right"],
            signed(each["difference"]),
            f"- needs {MIN_JOBS} jobs" if each["interval"] is None else signed_range(each["interval"]),
            _describe_jobs(each),
            each["verdict"],
        ]
        for each in document["means"]
    ]
    console.out("", highlight=False)
    print_table(console, f"mean validation {document['metric']}", columns, rows, names=[0])


def _describe_jobs(compared: Document) -> str:
    if count := compared["pairs"]:
        return counted(count, "pair")
    return " and ".join(map(str, compared["jobs"]))
