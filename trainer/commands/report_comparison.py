"""The part of a page about several runs that decides between them: on the same rows, with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trainer.commands.diff_rows import compare_rows, place_of, signed, signed_range
from trainer.commands.report_sections import MAX_NAMED, NamedRun, column_names
from trainer.display import counted, join_items
from trainer.layout import EVALUATIONS, Document
from trainer.predictions import predictions_file, read_about
from trainer.report.answers import class_scores_of, draw_confusion, number_rows, short_name
from trainer.report.metric_names import words
from trainer.report.page import Figure, Section, Table
from trainer.report.statistics import Confusion, read_columns

SPLIT: Final = "validation"
"""The split on which runs are ranked and compared: nobody should choose a run by its test split."""

_ROWS: Final = 30


@dataclass(frozen=True)
class Comparison:
    """The paired comparison of the best run with another one on the rows that both have predicted.

    Attributes:
        run: The other run.
        rows: The number of rows; 0 without predictions of the same rows.
        metric: Difference (best - other), interval and verdict on the best; None if they are not known.
        changed: The rows that changed sides, as `compare_rows` gives them.
    """

    run: NamedRun
    rows: int
    metric: Document | None
    changed: Document | None

    def describe(self) -> str | None:
        """Return the difference with its interval and what it says, for a table."""
        if self.metric is None:
            return None
        numbers = f"{signed(self.metric['difference'])} ({signed_range(self.metric['interval'])})"
        return f"{numbers}: {self.metric['verdict']}"


def compare_with_best(runs: Sequence[NamedRun], monitor: str) -> list[Comparison]:
    """Return the comparison of the first run, the best one, with each of the others."""
    comparisons = []
    for run in runs[1:]:
        evaluation = runs[0].record.monitored_evaluation
        compared = compare_rows(run.record, runs[0].record, [evaluation]).get(evaluation, {})
        if "corrected" in compared:  # the page ranks runs by the scores of their own targets
            compared = {}
        metric = compared.get("metrics", {}).get(monitor)
        comparisons.append(Comparison(run, compared.get("rows", 0), metric, compared.get("changed")))
    return comparisons


def decide(comparisons: Sequence[Comparison], monitor: str) -> str:
    """Return in a sentence whether the best run is better than the others by more than chance."""
    known = [each for each in comparisons if each.metric is not None]
    if not known:
        return f"Without predictions of the same {SPLIT} rows, the difference may be chance."
    rows = f"the {known[0].rows} {SPLIT} rows that both have predicted"
    if len(comparisons) == 1:
        metric, name = known[0].metric or {}, known[0].run.name
        numbers = f"{words(monitor)} {signed(metric['difference'])}, 95% interval {signed_range(metric['interval'])}"
        if metric["verdict"] in ("better", "worse"):
            return f"It is {metric['verdict']} than {name} on {rows}: {numbers}."
        return f"This decides nothing: on {rows}, no difference from {name} is shown: {numbers}."
    better = sum((each.metric or {})["verdict"] == "better" for each in known)
    unknown = len(comparisons) - len(known)
    on_rows = f"on the same {known[0].rows} {SPLIT} rows"
    if better:
        text = f"It is better than {counted(better, 'other run', of=len(known))} {on_rows}"
        text += "." if better == len(known) else "; against the rest, no difference is shown."
    else:
        others = known[0].run.name if len(known) == 1 else f"the other {len(known)} runs"
        text = f"This decides nothing: {on_rows}, no difference from {others} is shown."
    return text + (f" {unknown} cannot be compared without predictions of the same rows." if unknown else "")


def answer_comparison(runs: Sequence[NamedRun], comparisons: Sequence[Comparison]) -> Section:
    """Return what the runs answer side by side: confusions, scores of classes or distances, and rows in dispute."""
    files = [
        (run, predictions_file(run.record.folder / EVALUATIONS / f"{run.record.monitored_evaluation}.json"))
        for run in runs
    ]
    read = [(run, file, read_about(file)) for run, file in files if file.is_file()]
    first = read[0][2] if read else {}
    # Answers to other rows, or of other classes, cannot be compared.
    same = [
        (run, file)
        for run, file, about in read
        if all(about.get(key) == first.get(key) for key in ("digest", "kind", "classes"))
    ]
    figures: list[Figure] = []
    tables: list[Table] = []
    if len(same) > 1:
        kind, classes = str(first["kind"]), first.get("classes")
        if kind in ("class", "labels", "tags", "spans"):
            scores = {run.name: class_scores_of(file, kind, classes) for run, file in same}
            if kind == "class" and len(same) <= MAX_NAMED:
                figures += [
                    figure
                    for name, each in scores.items()
                    for figure in draw_confusion(each, f"Confusion matrix: {name}")
                ]
            headers = dict(zip([run.name for run in runs], column_names(runs), strict=True))
            tables += _f1_tables({headers[name]: each for name, each in scores.items()})
        elif kind in ("values", "similarity"):
            tables.append(_distance_table(same))
    tables += _changed_table(runs[0], comparisons)
    return Section(f"Answers on the {SPLIT} split, side by side", figures=figures, tables=tables)


def _f1_tables(scores: Mapping[str, Confusion]) -> Iterator[Table]:
    """Yield the F1 of each class in each run, the widest gap first."""
    import numpy as np

    first = next(iter(scores.values()))
    if any(list(each.names) != list(first.names) for each in scores.values()):
        return
    columns = np.nan_to_num(np.array([each.scores()[2] for each in scores.values()]))
    gaps = np.ptp(columns, axis=0)
    order = np.lexsort((-first.support, -gaps)).tolist()
    rows = [
        [short_name(first.names[place]), int(first.support[place]), *map(float, columns[:, place])] for place in order
    ]
    more = f": {_ROWS} of {len(rows)}" if len(rows) > _ROWS else ""
    header = ["class", "support", *map(short_name, scores)]
    yield Table(f"F1 of each class, the widest gap first{more}", header, rows[:_ROWS])


def _distance_table(same: Sequence[tuple[NamedRun, Path]]) -> Table:
    columns = ["run", "output", "rows", "mean error", "median distance", "90% are closer than", "99% are closer than"]
    rows = [[run.name, *row] for run, file in same for row in number_rows(*read_columns(file, "target", "prediction"))]
    return Table("Distances of predictions and targets", columns, rows)


def _changed_table(best: NamedRun, comparisons: Sequence[Comparison]) -> Iterator[Table]:
    """Yield the rows that only the best run or only the runner-up has right."""
    changed = comparisons[0].changed if comparisons else None
    if not changed:
        return
    other = comparisons[0].run
    counts = changed["correct_only_right"], changed["correct_only_left"]
    sides = f"{counts[0]} right only in {best.name}, {counts[1]} only in {other.name}"
    title = f"{counted(sum(counts), 'row')} changed sides: {sides}"
    rows = [
        [place_of(row), *(short_name(join_items(row[key])) for key in ("target", "right", "left"))]
        for row in changed["first"]
    ]
    more = f"; the first {len(rows)}" if len(rows) < sum(counts) else ""
    columns = ["row", "target", *map(short_name, (best.name, other.name))]
    yield Table(f"{title}{more}", columns, rows, is_stacked=True)
