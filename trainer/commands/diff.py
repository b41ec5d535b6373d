"""`trainer diff`: what differs between two runs, and the first step where they part."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from trainer.commands.folders import runs_by_age
from trainer.commands.results import Results, flat, results
from trainer.config.jobs import DiffJob
from trainer.errors import CheckpointError, format_error
from trainer.report.console import open_console, table

_ABSENT = "(none)"
_SHOWN = 60


def run(job: DiffJob, config: dict[str, Any]) -> None:
    """Shows the differences of two runs.

    Args:
        job: The checked config.
        config: The same as plain data; not needed.

    Raises:
        CheckpointError: There are no two runs to compare.
    """
    left, right = _named(job)
    document = difference(results(left, "left"), results(right, "right"))
    if job.json:
        print(json.dumps(document, indent=1, ensure_ascii=False))
        return
    console = open_console("auto")
    columns = ["", document["left"], document["right"]]
    for title, rows in (("config", _rows(document["config"])), ("results", _rows(document["results"]))):
        if rows:
            table(console, title, columns, rows)
        else:
            console.out(f"{title}: equal", highlight=False)
        console.out("", highlight=False)
    console.out(_told(document["steps"]), highlight=False)


def _named(job: DiffJob) -> tuple[str, str]:
    newest = [str(folder) for folder in runs_by_age()] if job.left is None or job.right is None else []
    right = job.right or (newest[0] if newest else None)
    left = job.left or next((folder for folder in newest if folder != right), None)
    if left is None or right is None:
        raise CheckpointError(
            format_error("left", "there are no two runs under runs/", "Name them: left=PATH right=PATH")
        )
    return left, right


def difference(left: Results, right: Results) -> dict[str, Any]:
    """What differs between two runs, as JSON: keys to the values of those runs that have them, `left` and `right`."""
    return {
        "left": str(left.folder),
        "right": str(right.folder),
        "config": _differing(dict(flat(left.config)), dict(flat(right.config))),
        "results": _differing(_results(left), _results(right)),
        "steps": _steps(left.series("train", "loss"), right.series("train", "loss")),
    }


def _results(found: Results) -> dict[str, Any]:
    values = {f"best.{key}": value for key, value in (found.best or {}).items()}
    for split, scores in found.evaluations.items():
        values |= {f"{split}.{key}": value for key, value in scores.items()}
    return values


def _differing(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    names = dict.fromkeys((*left, *right))
    above = {name.rpartition(".")[0] for name in names}
    sides = {name: {side: of[name] for side, of in (("left", left), ("right", right)) if name in of} for name in names}
    return {
        name: found
        for name, found in sides.items()
        if len(found) == 1 or not _equal(*found.values())
        # Where one run has keys and the other nothing in their place, each of the keys says so.
        if name not in above or any(found.values())
    }


def _equal(left: Any, right: Any) -> bool:
    """Whether two values are the same, also two that are not a number."""
    return type(left) is type(right) and (left == right or (left != left and right != right))


def _steps(left: Mapping[int, float], right: Mapping[int, float]) -> dict[str, Any]:
    """Training losses of the steps that both logged: how many, and the first that differs."""
    shared = sorted(left.keys() & right.keys())
    parted = next((step for step in shared if not _equal(left[step], right[step])), None)
    equal = [step for step in shared if parted is None or step < parted]
    return {
        "shared": len(shared),
        "last_equal": equal[-1] if equal else None,
        "first_different": None if parted is None else {"step": parted, "loss": [left[parted], right[parted]]},
    }


def _rows(differing: Mapping[str, Mapping[str, Any]]) -> list[list[Any]]:
    return [
        [name, _short(found.get("left", _ABSENT)), _short(found.get("right", _ABSENT))]
        for name, found in differing.items()
    ]


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _told(steps: Mapping[str, Any]) -> str:
    if not steps["shared"]:
        return "training loss: the two logged no step in common"
    first = steps["first_different"]
    if first is None:
        return f"training loss: equal to the bit at all {steps['shared']} steps that both logged"
    left, right = first["loss"]
    since = "" if steps["last_equal"] is None else f"; equal to the bit up to step {steps['last_equal']}"
    return f"training loss: they part at step {first['step']}, {left!r} and {right!r}{since}"
