"""The contract of a data source, `Source`, and the abilities that a source may have in addition."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from datasets import Dataset


class Source(Protocol):
    """Raw data: splits of named columns (the group `data`)."""

    @property
    def fingerprint(self) -> str:
        """Digest that changes when the data changes; cheap, so that a cached encoding is found without loading."""
        ...

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the splits `train`, `validation` and, if there is one, `test`.

        The columns of a split are the requested `roles` that the source has, possibly more, and `row` (int64), which
        identifies the origin of each row. The value in each role: `text`, `text_pair`, `positive`, `negative`, `label`:
        a string; `labels`, `words`, `tags`: strings; `spans`: `start`, `end` and `label` of each; `value`: numbers;
        `score`: a number; `features`: a number, a string or None by name; `image`: `bytes` or `path` of an image file.
        A column `group` of strings, which no task requests, keeps the rows of a group in one fold; the data check
        reports groups that are in several splits.

        Raises:
            DataError: The data cannot be read; the message names the file, the row and the column.
        """
        ...

    def describe_row(self, split: str, row: int) -> str:
        """Return the origin of a row for a message: `my.csv, row 18`."""
        ...

    def describe_role(self, role: str) -> str:
        """Return the user's name for the column of a role (`text`, `label`) for a message: `data.label=category`."""
        ...


@runtime_checkable
class SeparableSource(Protocol):
    """A `Source` that can read one split without the files of the others.

    It repeats no member of `Source`: `isinstance` would compute the fingerprint, which reads all files.
    """

    def for_split(self, split: str, numeric: Mapping[str, bool]) -> Source | None:
        """Return the source of one split; None if the split depends on the data of another one.

        Args:
            split: The split.
            numeric: For each feature by name, True for numbers and False for texts, as the task learned from training.
        """
        ...


@runtime_checkable
class LocatesRows(Protocol):
    """A `Source` that knows where a row comes from. It repeats no member of `Source`, as `SeparableSource`."""

    def locate_row(self, split: str, row: int) -> tuple[str | None, int | None]:
        """Return the file of a row and the number of its record there, from 1; None for what it does not have."""
        ...


@runtime_checkable
class HasColumns(Protocol):
    """A `Source` whose rows have columns, also some without a role. It repeats no member of `Source`."""

    def column_names(self, split: str) -> list[str]:
        """Return the names of all columns of a split."""
        ...

    def read_columns(self, split: str, names: Sequence[str]) -> Iterator[tuple[int, Sequence[object]]]:
        """Yield the column `row` and the cells of some columns, for all rows that a split may contain."""
        ...
