"""What a person should know of the data before training on it: shares of each split, and which are too high."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.digests import INPUT, TARGET, empty_digests

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Limit:
    """The share of a split's rows above which something is wrong, and what to do then."""

    share: float
    remedy: str


LIMITS = {
    "duplicates": Limit(0.05, "the same inputs again: leave them out, or weigh them knowingly"),
    "leaked": Limit(0.01, "the same inputs as in another split: take them out of one"),
    "conflicting": Limit(0.01, "equal inputs with other targets: one of the labels is wrong"),
    "empty": Limit(0.0, "nothing but white space: leave them out"),
}


@dataclass(frozen=True)
class DataReport:
    """What was found in the splits.

    Attributes:
        rows: The number of rows of each split.
        shares: What was counted in each split, by name, as a share of its rows.
        first: Where each was found first: split and name to the position of a row.
    """

    rows: dict[str, int]
    shares: dict[str, dict[str, float]]
    first: dict[tuple[str, str], int]

    def warnings(self) -> list[str]:
        """A line for each share that is too high."""
        return [
            f"{split}: {100 * share:.1f} % {name}, the first at position {self.first[split, name]}; "
            f"{LIMITS[name].remedy}"
            for split, found in self.shares.items()
            for name, share in found.items()
            if name in LIMITS and share > LIMITS[name].share
        ]

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Columns and rows: a split a row."""
        names = list(dict.fromkeys(name for found in self.shares.values() for name in found))
        lines = [
            [split, str(self.rows[split]), *(f"{100 * found[name]:.1f} %" if name in found else "-" for name in names)]
            for split, found in self.shares.items()
        ]
        return ["split", "rows", *names], lines


def check(encoded: Mapping[str, Dataset]) -> DataReport:
    """Looks at encoded splits, `train` first: repeated rows, rows of an earlier split, contradictions, empty texts."""
    seen = np.empty(0, dtype=np.int64)
    shares: dict[str, dict[str, float]] = {}
    first: dict[tuple[str, str], int] = {}
    for split, rows in encoded.items():
        columns = rows.with_format("numpy")
        inputs, targets = np.asarray(columns[INPUT][:]), np.asarray(columns[TARGET][:])
        found = _repeated(inputs, targets)
        if split != "train":
            found["leaked"] = np.isin(inputs, seen)
        found["empty"] = np.isin(inputs, list(empty_digests()))
        if "truncated" in rows.column_names:
            found["truncated"] = np.asarray(columns["truncated"][:])
        shares[split] = {name: float(where.mean()) for name, where in found.items()}
        first |= {(split, name): int(where.argmax()) for name, where in found.items() if where.any()}
        seen = np.union1d(seen, inputs)
    return DataReport({split: len(rows) for split, rows in encoded.items()}, shares, first)


def digest_of(rows: Dataset) -> str:
    """Of the inputs and targets of encoded rows in their order: who they are, whatever file they stood in."""
    columns = rows.with_format("numpy")
    digest = blake2b(digest_size=8)
    for name in (INPUT, TARGET):
        digest.update(np.asarray(columns[name][:], dtype="<i8").tobytes())
    return digest.hexdigest()


def _repeated(inputs: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Which rows repeat the inputs of another one, and which of these have another target than the one before."""
    order = np.lexsort((np.arange(len(inputs)), targets, inputs))
    same = np.zeros(len(inputs), dtype=bool)
    same[1:] = inputs[order][1:] == inputs[order][:-1]
    other = np.zeros(len(inputs), dtype=bool)
    other[1:] = targets[order][1:] != targets[order][:-1]
    duplicates, conflicting = np.zeros_like(same), np.zeros_like(same)
    duplicates[order], conflicting[order] = same, same & other
    return {"duplicates": duplicates, "conflicting": conflicting}
