"""Folds: the rows of training and validation in k parts, one for the validation split."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from trainer.data.cells import GROUP, split_key
from trainer.data.splits import normalize_whitespace
from trainer.display import counted
from trainer.errors import DataError, format_error
from trainer.protocols import HasColumns, LocatesRows, Source

if TYPE_CHECKING:
    from datasets import Dataset

_LOG = logging.getLogger(__name__)

_FROM_VALIDATION = 1 << 62
"""Bit of the column `row` of a row that the source has in its validation split."""


def assign_folds(keys: Sequence[str], classes: Sequence[str] | None, folds: int, seed: int) -> list[int]:
    """Return the fold of each row; -1 for the rows of a class with one input, which are always trained on.

    The rows of each class are ordered by a hash of the seed and their inputs, and dealt to the folds in turn, so that
    every fold has its share of every class. Rows of a class with equal inputs are in one fold.

    Args:
        keys: The inputs of each row as a text.
        classes: The class of each row; None if rows have no single class.
        folds: The number of folds.
        seed: The seed.
    """
    members: defaultdict[str, defaultdict[bytes, list[int]]] = defaultdict(lambda: defaultdict(list))
    for position, key in enumerate(keys):
        text = f"{seed}\0{normalize_whitespace(key)}".encode()
        group = "" if classes is None else classes[position]
        members[group][blake2b(text, digest_size=16).digest()].append(position)
    assigned = [-1] * len(keys)
    # Where one class ends, the next one goes on, so that small classes do not all fill the first folds.
    start = 0
    for _, inputs in sorted(members.items()):
        if len(inputs) == 1 and classes is not None:
            continue
        for number, (_, positions) in enumerate(sorted(inputs.items()), start):
            for position in positions:
                assigned[position] = number % folds
        start += len(inputs)
    return assigned


def assign_groups(groups: Sequence[str], classes: Sequence[str] | None, folds: int, seed: int) -> list[int]:
    """Return the fold of each row so that each group is in one; -1 for groups that have all rows of a class.

    The largest groups come first, equal ones in the order of a hash of the seed and the group. Each one goes to the
    fold that has the least of the group's classes: the fold with the smallest sum of n m / N^2 over the classes, where
    n of the N rows of a class are in the group, and m are in the fold already.

    Args:
        groups: The group of each row.
        classes: The class of each row; None if rows have no single class.
        folds: The number of folds.
        seed: The seed.
    """
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for position, group in enumerate(groups):
        counts[group]["" if classes is None else classes[position]] += 1
    totals = sum(counts.values(), Counter[str]())
    filled = [Counter[str]() for _ in range(folds)]
    fold_of: dict[str, int] = {}

    def rank(group: str) -> tuple[int, bytes]:
        return -counts[group].total(), blake2b(f"{seed}\0{group}".encode(), digest_size=16).digest()

    for group in sorted(counts, key=rank):
        members = counts[group]
        if classes is not None and any(size == totals[name] for name, size in members.items()):
            fold_of[group] = -1
            continue
        loads = [sum(size * fold[name] / totals[name] ** 2 for name, size in members.items()) for fold in filled]
        chosen = min(range(folds), key=lambda fold: (loads[fold], filled[fold].total(), fold))
        filled[chosen].update(members)
        fold_of[group] = chosen
    return [fold_of[group] for group in groups]


class Folds:
    """A source whose validation split is one fold of another source's training and validation rows.

    Args:
        source: The other source; its test split stays as it is.
        folds: The number of folds.
        fold: The fold that validates, from 0.
        seed: Decides which rows are in which fold.
    """

    def __init__(self, source: Source, folds: int, fold: int, seed: int) -> None:
        self._source = source
        self._folds, self._fold, self._seed = folds, fold, seed

    @property
    def fingerprint(self) -> str:
        """Digest of the source and of the fold."""
        parts = (self._source.fingerprint, self._folds, self._fold, self._seed)
        return blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the splits."""
        from datasets import concatenate_datasets

        splits = self._source.load(roles)
        validation = splits["validation"]
        rows = [row | _FROM_VALIDATION for row in validation["row"]]
        feature = validation.features["row"]
        column: Any = rows
        moved = validation.remove_columns("row").add_column("row", column, feature=feature)
        pool = concatenate_datasets([splits["train"], moved.select_columns(splits["train"].column_names)])
        assigned = self._assign(pool, roles)
        validating = [position for position, fold in enumerate(assigned) if fold == self._fold]
        if not validating:
            problem = (
                f"there are too few {'groups' if GROUP in pool.column_names else 'different inputs'} for as many folds"
            )
            raise DataError(format_error("data.folds", problem, "Set fewer", value=self._folds))
        training = [position for position, fold in enumerate(assigned) if fold != self._fold]
        return splits | {"train": pool.select(training), "validation": pool.select(validating)}

    def _assign(self, pool: Dataset, roles: Sequence[str]) -> list[int]:
        classes = pool["label"][:] if "label" in roles and "label" in pool.column_names else None
        if GROUP in pool.column_names:
            assigned = assign_groups(pool[GROUP][:], classes, self._folds, self._seed)
            reason = "in groups that contain all rows of a class"
        else:
            inputs = pool.select_columns([role for role in roles if role in pool.column_names])
            assigned = assign_folds([split_key(row) for row in inputs], classes, self._folds, self._seed)
            reason = "without another one of the same class"
        if alone := assigned.count(-1):
            _LOG.warning("data.folds: %s in every training split: %s", counted(alone, "row", "is"), reason)
        return assigned

    def describe_row(self, split: str, row: int) -> str:
        """Return the origin of a row, as the source does."""
        return self._source.describe_row(*self._origin(split, row))

    def locate_row(self, split: str, row: int) -> tuple[str | None, int | None]:
        """Return the file of a row and the number of its record there, if the source knows them."""
        if not isinstance(self._source, LocatesRows):
            return None, None
        return self._source.locate_row(*self._origin(split, row))

    def column_names(self, split: str) -> list[str]:
        """Return the columns that all rows of a split have; none if the source has no columns."""
        if not isinstance(self._source, HasColumns):
            return []
        first, *others = (self._source.column_names(origin) for origin in _origins(split))
        return [name for name in first if all(name in names for names in others)]

    def read_columns(self, split: str, names: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        """Yield the column `row` and the cells of some columns, for all rows that a split may contain."""
        assert isinstance(self._source, HasColumns), "there are no names"
        for origin in _origins(split):
            flag = _FROM_VALIDATION if origin == "validation" else 0
            for row, cells in self._source.read_columns(origin, names):
                yield row | flag, cells

    def describe_role(self, role: str) -> str:
        """Return the user's name for the column of a role."""
        return self._source.describe_role(role)

    def _origin(self, split: str, row: int) -> tuple[str, int]:
        """Return the split and the column `row` that a row has in the source."""
        if split == "test":
            return split, row
        return ("validation", row & ~_FROM_VALIDATION) if row & _FROM_VALIDATION else ("train", row)


def _origins(split: str) -> tuple[str, ...]:
    """Return the splits of the source that the rows of a split come from."""
    return (split,) if split == "test" else ("train", "validation")
