"""What a person should know of the data before training on it: measures of each split, and which are too high."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.digests import INPUT, TARGET
from trainer.protocols import Measure

if TYPE_CHECKING:
    from datasets import Dataset

_MANY_DUPLICATES = 0.05
_MANY_LEAKS = 0.01
_MANY_CONFLICTS = 0.01
"""Above these shares of a split's rows, a run starts with a warning."""


@dataclass(frozen=True)
class Checked:
    """The measures of the splits.

    Attributes:
        rows: The number of rows of each split.
        measures: The measures of each split.
    """

    rows: dict[str, int]
    measures: dict[str, list[Measure]]

    def warnings(self) -> list[str]:
        """A line for each measure that is too high."""
        return [
            f"{split}: {measure}" for split, found in self.measures.items() for measure in found if measure.too_high
        ]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: a split a row, a measure a column."""
        names = list(dict.fromkeys(measure.name for found in self.measures.values() for measure in found))
        lines = []
        for split, found in self.measures.items():
            shown = {measure.name: measure.shown for measure in found}
            lines.append([split, str(self.rows[split]), *(shown.get(name, "") for name in names)])
        return ["split", "rows", *names], lines


def check(encoded: Mapping[str, Dataset], of_task: Mapping[str, list[Measure]]) -> Checked:
    """Measures encoded splits: duplicates, rows that stand in an earlier split, equal inputs with other targets.

    Args:
        encoded: The splits, `train` first.
        of_task: What the task measured of each.
    """
    seen = np.empty(0, dtype=np.int64)
    measures = {}
    for split, rows in encoded.items():
        columns = rows.with_format("numpy")
        inputs, targets = np.asarray(columns[INPUT][:]), np.asarray(columns[TARGET][:])
        measures[split] = [*_repeated(split, inputs, targets, seen), *of_task.get(split, [])]
        seen = np.union1d(seen, inputs)
    return Checked({split: len(rows) for split, rows in encoded.items()}, measures)


def _repeated(split: str, inputs: np.ndarray, targets: np.ndarray, seen: np.ndarray) -> Iterator[Measure]:
    number = max(1, len(inputs))
    order = np.lexsort((targets, inputs))
    same = inputs[order][1:] == inputs[order][:-1]
    conflicting = same & (targets[order][1:] != targets[order][:-1])
    first = int(np.sort(order[1:][same])[0]) if same.any() else None
    yield Measure("duplicates", same.sum() / number, _MANY_DUPLICATES, "leave them out, or weigh them knowingly", first)
    if split != "train":
        leaked = np.isin(inputs, seen)
        where = int(leaked.argmax()) if leaked.any() else None
        remedy = "they are known from another split: take them out of one"
        yield Measure("leaked", leaked.mean() if len(leaked) else 0.0, _MANY_LEAKS, remedy, where)
    place = int(np.sort(order[1:][conflicting])[0]) if conflicting.any() else None
    yield Measure("conflicting", conflicting.sum() / number, _MANY_CONFLICTS, "equal inputs have other targets", place)
