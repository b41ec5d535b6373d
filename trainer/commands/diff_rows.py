"""The comparison of two runs on the rows that both have predicted: which is better, and on which rows they differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Final

from trainer.commands.run_folders import RunRecord
from trainer.config.metrics import metric_name
from trainer.display import counted, join_items
from trainer.errors import CheckpointError
from trainer.layout import EVALUATIONS, Document
from trainer.predictions import predictions_file, read_predictions
from trainer.report.console import print_indented, print_table
from trainer.report.metric_names import monitored_first

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from rich.console import Console

NUM_SHOWN: Final = 10
"""Rows that changed sides which are shown."""

NO_DIFFERENCE = "no difference shown"
_BY_CLASS = "it is computed by its class, and only from the outputs of one run at a time"
_OTHER_LOSS = "the runs have different losses"
_KEYS = ("step", "weights", "digest")
"""Keys with equal values in the scores of an evaluation and in its predictions."""


def compare_rows(left: RunRecord, right: RunRecord, splits: Collection[str] | None = None) -> dict[str, Document]:
    """Return the comparison on each split, or on some, if both runs have predictions of the same rows.

    Each has the number of `rows`, the `metrics` (by name: `left`, `right`, `difference`, the 95 % `interval` of the
    difference and the `verdict` on `right`), `no_interval` (why other metrics of both are not among them, by name),
    and for tasks whose answers are correct or wrong `changed`: the number of rows that are `correct_only_left` and
    `correct_only_right`, and the `first` of them. If the inputs are equal and the classes of some rows have changed,
    `corrected` is the number of these rows: both runs are scored with the class in the run with corrections, or in the
    right one, and without the loss.
    """
    compared = {}
    for split in (split for split in left.evaluations if split in right.evaluations):
        if splits is not None and split not in splits:
            continue
        pair = [_read(record, split) for record in (left, right)]
        if pair[0] is None or pair[1] is None:
            continue
        (left_rows, left_about), (right_rows, right_about) = pair[0], pair[1]
        same_kind = all(left_about.get(key) == right_about.get(key) for key in ("kind", "classes"))
        if not same_kind or len(left_rows) != len(right_rows):
            continue
        left_values, right_values = (record.evaluations[split] for record in (left, right))
        corrected = {}
        if left_about.get("digest") != right_about.get("digest"):
            if not (count := _count_corrected(left_rows, right_rows, left_about)):
                continue
            corrected = {"corrected": count}
            if _has_corrections(left) and not _has_corrections(right):
                right_rows, right_values = _score_again(right_rows, right_values, left_about, left_rows["target"])
            else:
                left_rows, left_values = _score_again(left_rows, left_values, left_about, right_rows["target"])
        same_loss = left.config.get("loss") == right.config.get("loss")
        metrics = _compare_metrics(left_rows, right_rows, left_about, left_values, right_values, same_loss=same_loss)
        missing = _explain_missing(left, right, left_values, right_values, metrics)
        changed = _changed_rows(left_rows, right_rows)
        compared[split] = {
            "rows": len(left_rows),
            **corrected,
            "metrics": metrics,
            **({"no_interval": missing} if missing else {}),
            **changed,
        }
    return compared


def _explain_missing(
    left: RunRecord, right: RunRecord, left_values: Document, right_values: Document, compared: Collection[str]
) -> dict[str, str]:
    """Return why metrics of both runs have no interval of their difference, by name."""
    names = [
        name
        for name, value in left_values.items()
        if isinstance(value, float) and isinstance(right_values.get(name), float) and name not in compared
    ]
    entries = [
        entry for record in (left, right) for entry in record.config.get("metrics") or () if isinstance(entry, dict)
    ]
    by_class = {metric_name(entry) for entry in entries}
    reasons = {**left_values.get("no_interval", {}), **right_values.get("no_interval", {})}
    return {name: _BY_CLASS if name in by_class else reasons.get(name, _reason(name)) for name in names}


def _reason(name: str) -> str:
    return _OTHER_LOSS if name == "loss" else "the predictions do not contain what it is computed from"


def _read(record: RunRecord, split: str) -> tuple[pyarrow.Table, Document] | None:
    """Return the predictions of a split; None if there are none, or they do not belong to the stored score."""
    path = predictions_file(record.folder / EVALUATIONS / f"{split}.json")
    if not path.is_file():
        return None
    try:
        table, about = read_predictions(path)
    except CheckpointError:
        return None
    return (table, about) if all(about.get(key) == record.evaluations[split].get(key) for key in _KEYS) else None


def _count_corrected(left: pyarrow.Table, right: pyarrow.Table, about: Document) -> int:
    """Return the number of rows whose class has changed; 0 if other rows or other targets are compared."""
    from pyarrow import compute

    tables = left, right
    known = all("input_digest" in table.column_names and not table["input_digest"].null_count for table in tables)
    if not known or not left["input_digest"].equals(right["input_digest"]) or about["kind"] != "class":
        return 0
    count = compute.sum(compute.not_equal(left["target"], right["target"])).as_py()
    return 0 if any(table["target"].null_count for table in tables) else count


def _has_corrections(record: RunRecord) -> bool:
    return bool((record.config.get("data") or {}).get("corrections"))


def _score_again(
    table: pyarrow.Table, values: Document, about: Document, targets: pyarrow.ChunkedArray
) -> tuple[pyarrow.Table, Document]:
    """Return predictions with other targets, and the metrics on them that can be computed from predictions.

    Args:
        table: The predictions.
        values: The values that their evaluation reported.
        about: The metadata of the predictions.
        targets: The target of each row.
    """
    import numpy as np
    import pyarrow as pa

    from trainer.intervals.confidence import fitting_estimates
    from trainer.intervals.estimates import make_estimates
    from trainer.intervals.resampling import Units

    units = Units.for_rows(len(table))
    known = fitting_estimates(table, about, values, units)
    for name, column in {"target": targets, "loss": pa.nulls(len(table), pa.float32())}.items():
        table = table.set_column(table.column_names.index(name), table.schema.field(name), column)
    again = make_estimates(table, about, units, list(values))
    once = np.ones((1, units.count))
    return table, {name: float(again[name](once)[0]) for name in known if name in again}


def _compare_metrics(
    left: pyarrow.Table,
    right: pyarrow.Table,
    about: Document,
    left_values: Document,
    right_values: Document,
    *,
    same_loss: bool,
) -> dict[str, Document]:
    from trainer.intervals.confidence import paired_intervals
    from trainer.intervals.estimates import LOWER_IS_BETTER

    intervals = paired_intervals((left, left_values), (right, right_values), about)
    metrics = {}
    for name, interval in intervals.items():
        if name == "loss" and not same_loss:
            continue  # losses of different kinds cannot be compared
        low, high = interval if name not in LOWER_IS_BETTER else (-interval[1], -interval[0])
        metrics[name] = {
            "left": left_values[name],
            "right": right_values[name],
            "difference": right_values[name] - left_values[name],
            "interval": list(interval),
            "verdict": "better" if low > 0 else "worse" if high < 0 else NO_DIFFERENCE,
        }
    return metrics


def _changed_rows(left: pyarrow.Table, right: pyarrow.Table) -> dict[str, Document]:
    """Return `changed`; nothing if no answer is correct or wrong."""
    import numpy as np

    sides = [side for side in map(_are_correct, (left, right)) if side is not None]
    if len(sides) < 2:
        return {}
    changed = np.flatnonzero(sides[0] != sides[1])
    columns = ["row", "file", "line", "target", "prediction"]
    shown = [table.select(columns).take(changed[:NUM_SHOWN]).to_pylist() for table in (left, right)]
    first = [
        {key: one[key] for key in columns[:-1]} | {"left": one["prediction"], "right": other["prediction"]}
        for one, other in zip(*shown, strict=True)
    ]
    counts = [int(side[changed].sum()) for side in sides]
    return {"changed": {"correct_only_left": counts[0], "correct_only_right": counts[1], "first": first}}


def _are_correct(table: pyarrow.Table) -> np.ndarray | None:
    """Return True for each row whose answer is the class, exactly the labels, or the tags of all its words."""
    import numpy as np
    import pyarrow as pa
    from pyarrow import compute

    answer = table.schema.field("target").type
    if pa.types.is_string(answer):
        return np.asarray(compute.equal(table["target"], table["prediction"]).fill_null(False))
    if not pa.types.is_list(answer) or not pa.types.is_string(answer.value_type):
        return None
    if not table["num_right"].null_count:
        all_right: np.ndarray = table["num_right"].to_numpy() == table["num_targets"].to_numpy()
        return all_right
    pairs = zip(table["target"].to_pylist(), table["prediction"].to_pylist(), strict=True)
    return np.array([{*target} == {*labels} for target, labels in pairs])


def print_comparison(console: Console, split: str, compared: Document, names: tuple[str, str], monitor: str) -> None:
    """Print the metrics of a split with their differences, the first rows that changed sides, and last the verdict.

    Args:
        console: The console.
        split: The name of the evaluation.
        compared: Its comparison, see `compare_rows`.
        names: The names of the two runs.
        monitor: The monitored metric, on which the verdict is given if it is compared.
    """
    known: Mapping[str, Document] = compared["metrics"]
    metrics = {name: known[name] for name in monitored_first(known, monitor)}
    if not metrics:
        print_indented(console, "", f"{split}: no metric of the {compared['rows']} rows can be compared")
        return
    if count := compared.get("corrected"):
        note = f"{counted(count, 'row', 'has')} another class in one of the runs"
        scored = "both runs are scored with the corrected one, without the loss"
        print_indented(console, "", f"{split}: {note}; {scored}")
    columns = ["", *names, "difference", "95% interval", f"{names[1]} is"]
    rows = [
        [key, item["left"], item["right"], signed(item["difference"]), signed_range(item["interval"]), item["verdict"]]
        for key, item in metrics.items()
    ]
    print_table(console, f"{split}: {compared['rows']} rows of both runs", columns, rows)
    reasons: dict[str, list[str]] = {}
    for key, reason in compared.get("no_interval", {}).items():
        reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        print_indented(console, "  ", f"not compared: {', '.join(keys)}: {reason}.")
    if changed := compared.get("changed"):
        _print_changed(console, split, changed, names)
    name = next(iter(metrics))
    print_indented(console, "", f"{split}: {_verdict(name, metrics[name], compared['rows'], names)}")


def _print_changed(console: Console, split: str, changed: Document, names: tuple[str, str]) -> None:
    counts = changed["correct_only_left"], changed["correct_only_right"]
    sides = [f"{count} correct only in {name}" for count, name in zip(counts, names, strict=True)]
    text = f"{split}: {counted(sum(counts), 'row')} changed sides: {' and '.join(sides)}"
    if changed["first"]:
        rows = [
            [place_of(row), *(join_items(row[key]) for key in ("target", "left", "right"))] for row in changed["first"]
        ]
        print_table(console, f"{text}; the first:", ["row", "target", *names], rows, names=[1, 2, 3])
    else:
        print_indented(console, "", text)


def _verdict(name: str, metric: Document, num_rows: int, names: tuple[str, str]) -> str:
    left, right = names
    numbers = f"{name} {signed(metric['difference'])}, 95% interval {signed_range(metric['interval'])}, {num_rows} rows"
    if metric["verdict"] == NO_DIFFERENCE:
        return f"no difference shown between {left} and {right}: {numbers}"
    return f"{right} is {metric['verdict']} than {left}: {numbers}"


def signed(value: float) -> str:
    return f"{value:+.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:+.3e}"


def signed_range(interval: list[float]) -> str:
    return " to ".join(map(signed, interval))


def place_of(row: Document) -> str:
    place = [str(value) for value in (row["file"], row["line"]) if value is not None]
    return ", ".join(place) or f"row {row['row']}"
