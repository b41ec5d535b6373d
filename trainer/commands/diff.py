"""`trainer diff`: the differences between two runs, and the first step at which they diverge; or between two sweeps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from trainer.commands.diff_rows import compare_rows, print_comparison
from trainer.commands.run_folders import RunRecord, list_runs_newest_first, read_runs
from trainer.commands.sweep import is_sweep_folder
from trainer.config.jobs import DiffJob
from trainer.display import displayable, masked_config
from trainer.documents import EVALUATION_PARTS, flatten
from trainer.errors import CheckpointError, format_error
from trainer.layout import Document
from trainer.report.console import format_number, open_console, print_indented, print_table
from trainer.report.metric_names import monitored_first
from trainer.shapes import to_json

_ABSENT = "(none)"
_MAX_CHARACTERS = 60
"""Longer values are shortened in the table."""


def run(job: DiffJob, config: Document) -> None:
    """Print the differences between two runs, or between two sweeps.

    Raises:
        CheckpointError: There are no two runs or two sweeps to compare.
    """
    if any(path is not None and is_sweep_folder(Path(path)) for path in (job.left, job.right)):
        _run_sweeps(job)
        return
    left, right = _select_runs(job)
    document = compare_runs(*read_runs([("left", left), ("right", right)]))
    if job.json:
        print(displayable(to_json(document, indent=1, ensure_ascii=False)))
        return
    console = open_console("auto")
    columns = ["", document["left"], document["right"]]
    for title, rows in (("config", _table_rows(document["config"])), ("results", _table_rows(document["results"]))):
        if rows:
            print_table(console, title, columns, rows)
        else:
            print_indented(console, "", f"{title}: equal")
        console.out("", highlight=False)
    print_indented(console, "", _describe_steps(document["steps"]))
    names = document["left"], document["right"]
    for split, compared in document["rows"].items():
        console.out("", highlight=False)
        print_comparison(console, split, compared, names, document["monitor"])


def _run_sweeps(job: DiffJob) -> None:
    """Print the differences between two sweeps."""
    from trainer.commands.diff_sweeps import compare_sweeps, print_sweeps, read_shared_config

    for key, path in (("left", job.left), ("right", job.right)):
        if path is None or not is_sweep_folder(Path(path)):
            problem, remedy = "a sweep can only be compared with another sweep", "Name two sweeps, or two runs"
            raise CheckpointError(format_error(key, problem, remedy, value=path))
    left, right = Path(str(job.left)), Path(str(job.right))
    config = _compare_values(read_shared_config(left), read_shared_config(right))
    config = {key: sides for key, sides in config.items() if not key.startswith("sweep.")}
    document = {"config": config, **compare_sweeps(left, right)}
    if job.json:
        print(displayable(to_json(document, indent=1, ensure_ascii=False)))
        return
    console = open_console("auto")
    if rows := _table_rows(config):
        print_table(console, "config that the jobs of a sweep share", ["", str(left), str(right)], rows)
    else:
        print_indented(console, "", "config that the jobs of a sweep share: equal")
    console.out("", highlight=False)
    print_sweeps(console, document)


def _select_runs(job: DiffJob) -> tuple[str, str]:
    newest = [str(folder) for folder in list_runs_newest_first()] if job.left is None or job.right is None else []
    right = job.right or (newest[0] if newest else None)
    left = job.left or next((folder for folder in newest if folder != right), None)
    if left is None or right is None:
        remedy = "Name them: left=PATH right=PATH"
        raise CheckpointError(format_error("left", "there are no two runs under runs/", remedy))
    return left, right


def compare_runs(left: RunRecord, right: RunRecord) -> Document:
    """Return the differences as JSON: key -> the values of the runs that have the key, under `left` and `right`."""
    return {
        "left": str(left.folder),
        "right": str(right.folder),
        "config": _compare_values(dict(flatten(left.config)), dict(flatten(right.config))),
        "results": _compare_values(_flatten_results(left), _flatten_results(right)),
        "monitor": (right.best or {}).get("name", "loss"),
        "rows": compare_rows(left, right),
        "steps": _compare_steps(left.series("train", "loss"), right.series("train", "loss")),
    }


def _flatten_results(record: RunRecord) -> Document:
    values = {f"best.{key}": value for key, value in (record.best or {}).items()}
    for split, scores in record.evaluations.items():
        shown = [key for key in scores if key not in EVALUATION_PARTS]
        values |= {f"{split}.{key}": scores[key] for key in monitored_first(shown, (record.best or {}).get("name"))}
    return values


def _compare_values(left: Mapping[str, object], right: Mapping[str, object]) -> dict[str, Document]:
    names = dict.fromkeys((*left, *right))
    parents = {name.rpartition(".")[0] for name in names}
    sides = {
        name: {side: values[name] for side, values in (("left", left), ("right", right)) if name in values}
        for name in names
    }
    return {
        name: {side: masked_config(value, name) for side, value in values.items()}
        for name, values in sides.items()
        if len(values) == 1 or not _is_equal(*values.values())
        # If one run has keys and the other an empty value in their place, only the keys are listed.
        if name not in parents or any(values.values())
    }


def _is_equal(left: object, right: object) -> bool:
    """Return whether two values are the same; NaN equals NaN."""
    return type(left) is type(right) and (left == right or (left != left and right != right))


def _compare_steps(left: Mapping[int, float], right: Mapping[int, float]) -> Document:
    """Compare the training losses of the steps that both runs logged."""
    shared = sorted(left.keys() & right.keys())
    first = next((step for step in shared if not _is_equal(left[step], right[step])), None)
    equal = [step for step in shared if first is None or step < first]
    return {
        "shared": len(shared),
        "last_equal": equal[-1] if equal else None,
        "first_different": None if first is None else {"step": first, "loss": [left[first], right[first]]},
    }


def _table_rows(differences: Mapping[str, Document]) -> list[list[object]]:
    return [
        [name, *_show_values(values.get("left", _ABSENT), values.get("right", _ABSENT))]
        for name, values in differences.items()
    ]


def _show_values(left: object, right: object) -> list[object]:
    """Return two values as a table shows them: numbers have the digits that tell them apart."""
    if isinstance(left, float) and isinstance(right, float):
        if format_number(left) != format_number(right):
            return [left, right]
        digits = next((digits for digits in range(4, 18) if f"{left:.{digits}g}" != f"{right:.{digits}g}"), 17)
        return [f"{left:.{digits}g}", f"{right:.{digits}g}"]
    return [_shorten(left), _shorten(right)]


def _shorten(value: object) -> object:
    if isinstance(value, float):
        return value
    text = value if isinstance(value, str) else to_json(value, ensure_ascii=False)
    return text if len(text) <= _MAX_CHARACTERS else f"{text[: _MAX_CHARACTERS - 3]}..."


def _describe_steps(steps: Document) -> str:
    if not steps["shared"]:
        return "training loss: the runs logged no step in common"
    first = steps["first_different"]
    if first is None:
        return f"training loss: bitwise equal at all {steps['shared']} steps that both runs logged"
    left, right = first["loss"]
    since = "" if steps["last_equal"] is None else f"; bitwise equal up to step {steps['last_equal']}"
    return f"training loss: the runs diverge at step {first['step']} ({left!r}, {right!r}){since}"
