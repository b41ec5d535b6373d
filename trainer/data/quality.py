"""Data quality: digests that identify equal rows, and a report of duplicates, leaks, contradictions and empty texts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from trainer.data.cells import GROUP, TIME
from trainer.data.order import block_of
from trainer.data.splits import normalize_whitespace
from trainer.display import counted
from trainer.files.mapped import MappedRows, as_array, read_chunks
from trainer.protocols import Columns, Target
from trainer.validation_sets import VALIDATION, is_validation

INPUT_DIGEST, TARGET_DIGEST, GROUP_DIGEST = "input_digest", "target_digest", "group_digest"
"""Columns of encoded data, int64, that identify equal rows without keeping the raw rows; the last one is there only if
the rows have groups."""

_TARGET_ROLES = frozenset({"label", "labels", "value", "score", "tags", "spans"})


def row_digests(rows: Columns, roles: Sequence[str]) -> dict[str, list[int]]:
    """Return the digests of raw rows by the name of their column, and their times if they have some.

    White space does not distinguish texts.
    """
    inputs = [role for role in roles if role not in _TARGET_ROLES]
    targets = [role for role in roles if role in _TARGET_ROLES]
    chosen = {INPUT_DIGEST: inputs, TARGET_DIGEST: targets, **({GROUP_DIGEST: [GROUP]} if GROUP in rows else {})}
    times = {TIME: list(rows[TIME])} if TIME in rows else {}
    return {name: _digests(rows, roles_of_name) for name, roles_of_name in chosen.items()} | times


def block_digests(raw: Columns, blocks: Sequence[int]) -> dict[str, list[int]]:
    """Return the digests and the column `row` of blocks, computed from the digests of their raw rows.

    The first block has the digests of its raw row; the input digest of the n-th block also depends on n. So equal raw
    rows have equal blocks, and the blocks of one row differ from each other.

    Args:
        raw: The digests and `row` of the raw rows.
        blocks: The raw row of each block, in ascending order.
    """
    starts = {row: first for first, row in reversed(list(enumerate(blocks)))}
    numbers = [position - starts[row] for position, row in enumerate(blocks)]
    inputs = [raw[INPUT_DIGEST][row] for row in blocks]
    return {
        **{name: [values[row] for row in blocks] for name, values in raw.items()},
        INPUT_DIGEST: [
            _digest([digest, number]) if number else digest for digest, number in zip(inputs, numbers, strict=True)
        ],
    }


def digest_of_rows(rows: MappedRows) -> str:
    """Return a digest of the inputs and targets of encoded rows in order, independent of the files they came from."""
    digest = blake2b(digest_size=8)
    for name in (INPUT_DIGEST, TARGET_DIGEST):
        for _, (values,) in _chunks(rows, name):
            digest.update(np.asarray(values, dtype="<i8").tobytes())
    return digest.hexdigest()


def _empty_digests() -> frozenset[int]:
    """Return the `input_digest` of rows whose texts are all blank."""
    return frozenset(_digest([""] * number) for number in range(1, 4))


def _digests(rows: Columns, roles: Sequence[str]) -> list[int]:
    """Return the digest of the values of each row in some roles; 0 without roles."""
    if not roles:
        return [0] * len(rows["row"])
    columns = ([*map(_as_bytes, rows[role])] for role in roles)
    # Called for every row: one call of the hash for each, and one conversion for all.
    digests = (blake2b(b"\0".join((*values, b"")), digest_size=8).digest() for values in zip(*columns, strict=True))
    whole: list[int] = np.frombuffer(b"".join(digests), dtype=">i8").tolist()
    return whole


def _digest(values: Sequence[object]) -> int:
    names = [*map(str, range(len(values)))]
    return _digests({name: [value] for name, value in zip(names, values, strict=True)}, names)[0]


def _as_bytes(value: object) -> bytes:
    if isinstance(value, str):
        return normalize_whitespace(value).encode()
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        content: bytes = value["bytes"]
        return content
    return json.dumps(value, sort_keys=True, default=str).encode()


@dataclass(frozen=True)
class Limit:
    """The largest share of a split's rows that is not reported as a problem, and the remedy."""

    share: float
    remedy: str


LIMITS = {
    "duplicates": Limit(0.05, "duplicate inputs: remove them or weight them deliberately"),
    "leaked": Limit(0.01, "inputs that are also in another split: remove them from one of the two"),
    "shared groups": Limit(0.0, "groups that are also in another split: move all rows of a group into one split"),
    "too old": Limit(
        0.0,
        "rows that are not newer than all rows of the splits before: divide the files by time, or let data.split do it",
    ),
    "conflicting": Limit(0.01, "equal inputs with different targets: correct the wrong labels"),
    "empty": Limit(0.0, "texts without any character but white space: remove them"),
}


@dataclass(frozen=True)
class DataReport:
    """The quality of the splits.

    Attributes:
        rows: The number of rows of each split.
        shares: Each measure of each split, as a share of the split's rows.
        first: The position of the first affected row, by split and measure.
        times: The first and the last time of each split, if the rows have times.
    """

    rows: dict[str, int]
    shares: dict[str, dict[str, float]]
    first: dict[tuple[str, str], int]
    times: dict[str, tuple[str, str]] = field(default_factory=dict)

    def warnings(self, describe: Callable[[str, int], str] | None = None) -> list[str]:
        """Return a line for each share above its limit.

        Args:
            describe: Returns the origin of the row at a position of a split; None leaves it at the position.
        """
        lines = []
        for split, measures in self.shares.items():
            for name, share in measures.items():
                if name not in LIMITS or share <= LIMITS[name].share:
                    continue
                first = self.first[split, name]
                place = f"at position {first}" if describe is None else f"is {describe(split, first)}"
                rows = counted(round(share * self.rows[split]), "row")
                lines.append(f"{split}: {100 * share:.1f}% {name} ({rows}), the first {place}; {LIMITS[name].remedy}")
        return lines

    def measures(self) -> dict[str, dict[str, float]]:
        """Return the rows and the shares of each split, as the events of a run keep them."""
        return {split: {"rows": self.rows[split], **shares} for split, shares in self.shares.items()}

    def summary(self) -> str:
        """Return the sizes of the splits and the shares that are not 0: `90 train (2.2% duplicates), 10 test rows`."""
        parts = []
        for split, rows in self.rows.items():
            shares = [f"{100 * share:.1f}% {name}" for name, share in self.shares[split].items() if share]
            if split in self.times:
                shares.insert(0, " to ".join(self.times[split]))
            parts.append(f"{rows:,} {split}" + (f" ({', '.join(shares)})" if shares else ""))
        return ", ".join(parts) + " rows"

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return the header and the rows of a table with one row per split."""
        names = list(dict.fromkeys(name for measures in self.shares.values() for name in measures))
        lines = [
            [
                split,
                str(self.rows[split]),
                *(f"{100 * measures[name]:.1f}%" if name in measures else "-" for name in names),
            ]
            for split, measures in self.shares.items()
        ]
        return ["split", "rows", *names], lines


def measure_quality(
    encoded: Mapping[str, MappedRows], target: Target | None, *, block_size: int = 1 << 18
) -> DataReport:
    """Measure encoded splits, `train` first: duplicates, rows leaked from an earlier split, contradictions, blanks.

    Args:
        encoded: The splits.
        target: The type of their targets; equal inputs may well have different numbers, so these are no contradictions.
        block_size: Approximate number of rows that are compared at a time, so that memory does not grow with the data.
    """
    counts: dict[str, dict[str, int]] = {split: {} for split in encoded}
    first: dict[tuple[str, str], int] = {}

    def add(split: str, name: str, positions: np.ndarray) -> None:
        counts[split][name] = counts[split].get(name, 0) + len(positions)
        if len(positions):
            first[split, name] = min(int(positions.min()), first.get((split, name), sys.maxsize))

    blocks = -(-sum(map(len, encoded.values())) // block_size)
    for block in range(blocks):
        seen = _Earlier()
        for split, rows in encoded.items():
            positions, inputs, targets = _rows_of_block(rows, block, blocks)
            duplicates, conflicting = _duplicates_and_conflicts(inputs, targets)
            add(split, "duplicates", positions[duplicates])
            if target != "values":
                add(split, "conflicting", positions[conflicting])
            if split != "train":
                add(split, "leaked", positions[np.isin(inputs, seen.before(split))])
            add(split, "empty", positions[np.isin(inputs, list(_empty_digests()))])
            seen.add(split, inputs)
    _add_shared_groups(encoded, add)
    times = _add_old_rows(encoded, add)
    for split, rows in encoded.items():
        if "truncated" in rows.column_names:
            for start, (truncated,) in _chunks(rows, "truncated"):
                add(split, "truncated", start + np.flatnonzero(truncated))
    sizes = {split: len(rows) for split, rows in encoded.items()}
    shares = {
        split: {name: count / sizes[split] for name, count in measures.items()} for split, measures in counts.items()
    }
    return DataReport(sizes, shares, first, times)


class _Earlier:
    """The values in the splits before each one, where several validation sets are not before each other."""

    def __init__(self) -> None:
        self._stage = "train"
        self._before: np.ndarray | None = None
        self._own: np.ndarray | None = None

    def before(self, split: str) -> np.ndarray:
        """Return the different values of the earlier splits, ascending."""
        stage = VALIDATION if is_validation(split) else split
        if stage != self._stage:
            self._stage, self._before = stage, _union(self._before, self._own)
            self._own = None
        return np.empty(0, dtype=np.int64) if self._before is None else self._before

    def add(self, split: str, values: np.ndarray) -> None:
        """Add values of a split."""
        self.before(split)
        self._own = _union(self._own, values)


def _union(left: np.ndarray | None, right: np.ndarray | None) -> np.ndarray | None:
    if left is None or right is None:
        return np.unique(right) if left is None and right is not None else left
    return np.union1d(left, right)


def _add_shared_groups(encoded: Mapping[str, MappedRows], add: Callable[[str, str, np.ndarray], None]) -> None:
    """Add the rows of each split whose group is in an earlier one, if the rows have groups."""
    seen = _Earlier()
    for split, rows in encoded.items():
        if GROUP_DIGEST not in rows.column_names:
            continue
        for start, (groups,) in _chunks(rows, GROUP_DIGEST):
            if split != "train":
                add(split, "shared groups", start + np.flatnonzero(np.isin(groups, seen.before(split))))
            seen.add(split, groups)


def _add_old_rows(
    encoded: Mapping[str, MappedRows], add: Callable[[str, str, np.ndarray], None]
) -> dict[str, tuple[str, str]]:
    """Add the rows of each split that are not newer than all rows of the earlier ones, if the rows have times.

    Returns:
        The first and the last time of each split, for people.
    """
    newest = _Earlier()
    spans = {}
    for split, rows in encoded.items():
        if TIME not in rows.column_names:
            continue
        earlier, bounds = newest.before(split), []
        for start, (times,) in _chunks(rows, TIME):
            if len(earlier):
                add(split, "too old", start + np.flatnonzero(times <= earlier[-1]))
            bounds += [times.min(), times.max()]
        has_zone = getattr(rows.data.schema.field(TIME).type, "tz", None) is not None
        first, last = (_format_time(bound, has_zone=has_zone) for bound in (min(bounds), max(bounds)))
        spans[split] = (first, last)
        newest.add(split, np.array([max(bounds)]))
    return spans


def _format_time(time: np.generic, *, has_zone: bool) -> str:
    """Return a number, or a date without the parts that are 0."""
    if not isinstance(time, np.datetime64):
        return f"{time:.15g}"
    text = str(time).removesuffix(".000000")
    return text.removesuffix("T00:00:00") if not has_zone else f"{text}Z"


def _rows_of_block(rows: MappedRows, block: int, blocks: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, input digests and target digests of the rows of a block; equal inputs are in the same block."""
    chunks: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start, (inputs, targets) in _chunks(rows, INPUT_DIGEST, TARGET_DIGEST):
        chosen = np.flatnonzero(block_of(inputs.view(np.uint64), blocks) == block)
        chunks.append((start + chosen, inputs[chosen], targets[chosen]))
    positions, inputs, targets = (np.concatenate(arrays) for arrays in zip(*chunks, strict=True))
    return positions, inputs, targets


def _chunks(rows: MappedRows, *names: str) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield the position of the first row of each chunk of a split, and arrays of its columns."""
    start = 0
    for table in read_chunks(rows, *names, size=1 << 17):
        yield start, [as_array(table[name]) for name in names]
        start += len(table)


def _duplicates_and_conflicts(inputs: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return masks (N,) of rows that repeat another row's inputs, and of repeated rows with a different target."""
    order = np.lexsort((np.arange(len(inputs)), targets, inputs))
    same_inputs = np.zeros(len(inputs), dtype=bool)
    same_inputs[1:] = inputs[order][1:] == inputs[order][:-1]
    other_target = np.zeros(len(inputs), dtype=bool)
    other_target[1:] = targets[order][1:] != targets[order][:-1]
    duplicates, conflicting = np.zeros_like(same_inputs), np.zeros_like(same_inputs)
    duplicates[order], conflicting[order] = same_inputs, same_inputs & other_target
    return duplicates, conflicting
